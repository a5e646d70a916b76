"""The tokenizer: the original's outputs, texts that survive, streams that equal the whole."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yalm.errors import YalmError
from yalm.tokens.tokenizer import StreamDecoder, Tokenizer, _sample, _sentences, train_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "yalm-tiny"
CASES = json.loads((GOLDEN / "tokenizer.json").read_text(encoding="utf-8"))
any_text = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \n\t\rдомabc[NL]😀\ufffd⁇\x00")), max_size=40
)


@pytest.mark.parametrize("case", CASES, ids=[ascii(case["text"][:12]) for case in CASES])
def test_original_outputs(golden: Tokenizer, case: dict) -> None:
    assert golden.encode(case["text"]) == case["ids"]
    assert golden.decode(case["ids"]) == case["detokenized"]


def test_batch_is_the_same_as_one_by_one(golden: Tokenizer) -> None:
    texts = [case["text"] for case in CASES]
    assert golden.encode_batch(texts, threads=2) == [case["ids"] for case in CASES]
    assert golden.encode_batch([]) == []


def test_special_ids(golden: Tokenizer, tokenizer: Tokenizer) -> None:
    for some in (golden, tokenizer):
        assert (some.unk_id, some.bos_id, some.eos_id, some.newline_id, some.mask_id) == (0, 1, 2, 3, 4)
        assert [some.piece(token) for token in range(5)] == ["<unk>", "<s>", "</s>", "[NL]", "[MASK]"]
    assert (golden.vocab_size, tokenizer.vocab_size) == (508, 420)


@given(text=any_text)
@settings(max_examples=300, deadline=None)
def test_every_text_survives(tokenizer: Tokenizer, text: str) -> None:
    expected = text.replace("[NL]", "\n").replace("▁", " ")
    assert tokenizer.decode(tokenizer.encode(text)) == expected
    assert 0 not in tokenizer.encode(text)


def test_lone_surrogate_becomes_a_replacement_character(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def spelled(some: Tokenizer, text: str) -> list[int]:
    """The ids of an ASCII text, a character each, as a model may choose them."""
    pieces = {some.piece(token): token for token in range(some.vocab_size)}
    return [pieces.get(char, pieces.get(f"<0x{ord(char):02X}>", some.unk_id)) for char in text]


@pytest.mark.parametrize("which", ["golden", "tokenizer"])
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_stream_equals_suffix(request: pytest.FixtureRequest, which: str, data: st.DataObject) -> None:
    """Over ids in any order: broken characters, spelled-out newlines, special ids, spaces at the start."""
    some: Tokenizer = request.getfixturevalue(which)
    high_bytes = [token for token in range(some.vocab_size) if some.is_byte(token)][0x80:] or [some.unk_id]
    run = st.one_of(
        st.lists(st.integers(0, some.vocab_size - 1), max_size=3),
        st.lists(st.sampled_from(high_bytes), max_size=4),
        st.lists(st.integers(0, 3), max_size=2),
        st.sampled_from(["[NL]", "[N", "[[NL]", "NL]", "["]).map(lambda text: spelled(some, text)),
        any_text.map(lambda text: some.encode(text)[1:]),
    )
    ids = [token for tokens in data.draw(st.lists(run, max_size=4)) for token in tokens]
    cut = data.draw(st.integers(0, len(ids)))
    prompt, new = [some.bos_id, *ids[:cut]], ids[cut:]
    stream = StreamDecoder(some, prompt)
    pieces = [stream.push(token) for token in new]
    suffix = some.suffix(prompt, new)
    assert "".join(pieces) + stream.finish() == suffix
    shown = some.decode(prompt)
    assert shown + suffix == some.decode(prompt + new) or shown[-1] in "\ufffd[NL"


def test_stream_of_a_text(tokenizer: Tokenizer) -> None:
    """A text arrives at once where it is settled, whole characters only, with the space after the prompt kept."""
    prompt = tokenizer.encode("Документ")
    new = tokenizer.encode("номер 😀")[1:]
    stream = StreamDecoder(tokenizer, prompt)
    pieces = [stream.push(token) for token in new]
    assert "".join(pieces) == " номер 😀"
    assert not any("\ufffd" in piece for piece in pieces)
    assert stream.finish() == ""
    unconditional = StreamDecoder(tokenizer, [tokenizer.bos_id])
    assert "".join(map(unconditional.push, new)) == "номер 😀"


def test_stream_decodes_only_a_short_window(tokenizer: Tokenizer) -> None:
    stream = StreamDecoder(tokenizer, tokenizer.encode("начало"))
    broken = [token for token in range(tokenizer.vocab_size) if tokenizer.piece(token) == "<0xD0>"] * 50
    for token in tokenizer.encode("слово 日本 [и] так далее\n" * 20)[1:] + broken:
        stream.push(token)
        assert len(stream._window) <= 4


def test_ids_outside_the_vocabulary(tokenizer: Tokenizer) -> None:
    stream = StreamDecoder(tokenizer, [1])
    for bad in (-1, tokenizer.vocab_size):
        for call in (
            lambda bad=bad: tokenizer.decode([1, bad]),
            lambda bad=bad: tokenizer.piece(bad),
            lambda bad=bad: stream.push(bad),
        ):
            with pytest.raises(YalmError, match="outside the vocabulary"):
                call()
    assert stream.push(tokenizer.newline_id) == "\n"


def test_files_that_are_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(YalmError, match="cannot read"):
        Tokenizer(tmp_path / "missing.model")
    for content in (b"", b"junk"):
        (tmp_path / "junk.model").write_bytes(content)
        with pytest.raises(YalmError, match=r"not a SentencePiece model|lacks"):
            Tokenizer(tmp_path / "junk.model")


def test_training_repeats(tmp_path: Path) -> None:
    texts = ["раз два три four five\n" * 3, "слово " * 400, "x" * 3000 + "я" * 3000]
    files = []
    for name in ("a", "b"):
        tokenizer = train_tokenizer(iter(texts), tmp_path / name, vocab_size=300, max_sentence_bytes=1000)
        files.append((tmp_path / name).read_bytes())
        assert tokenizer.vocab_size == 300
    assert files[0] == files[1]


def test_training_samples_within_its_bound(tmp_path: Path) -> None:
    """Of 2,000 lines only the sample's share is seen: the rare characters of the others are not in the vocabulary."""
    texts = [f"строка {chr(0x4E00 + number)}" * 3 for number in range(2000)]
    arguments = {"vocab_size": 340, "sample_bytes": 2000}
    first = train_tokenizer(texts, tmp_path / "a", seed=1, **arguments)
    again = train_tokenizer(texts, tmp_path / "b", seed=1, **arguments)
    other = train_tokenizer(texts, tmp_path / "c", seed=2, **arguments)
    assert first.sha256 == again.sha256 != other.sha256


@given(text=any_text, max_bytes=st.integers(4, 9))
@settings(deadline=None)
def test_sentences_are_the_text_in_whole_characters(text: str, max_bytes: int) -> None:
    pieces = list(_sentences([text], max_bytes))
    assert all(0 < len(piece) <= max_bytes for piece in pieces)
    kept = "".join(piece.decode() for piece in pieces)
    assert kept.replace(" ", "") in "".join(line for line in text.split("\n")).replace(" ", "")
    if text.strip() == text and "\n" not in text and " " not in text:
        assert kept == text


@pytest.mark.parametrize("seed", range(10))
def test_sample_is_uniform_whatever_the_sizes(seed: int) -> None:
    """Kept are exactly the sentences with the smallest keys: a short one late has no better chance than a long one."""
    sentences = [b"%04d" % number + b"x" * (number % 7 * 30) for number in range(400)]
    kept = set(_sample(sentences, 5000, random.Random(seed)))
    draw = random.Random(seed)
    keys = {sentence: draw.random() for sentence in sentences}
    assert 4000 < sum(map(len, kept)) <= 5000
    assert max(keys[sentence] for sentence in kept) < min(keys[sentence] for sentence in keys if sentence not in kept)


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        ([], 300, "no text"),
        (["мало"], 9999, "use at most"),
        (["мало"], 100, "use more than"),
        (["мало"], 0, "vocab_size = 0"),
    ],
)
def test_training_that_cannot_be(tmp_path: Path, texts: list[str], vocab_size: int, message: str) -> None:
    with pytest.raises(YalmError, match=message):
        train_tokenizer(texts, tmp_path / "t.model", vocab_size=vocab_size)
    assert list(tmp_path.iterdir()) == []

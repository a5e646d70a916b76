"""The tokenizer: SentencePiece with YaLM's conventions, and decoding of a text while it is being generated.

Text to ids: every newline becomes the piece `[NL]` (SentencePiece would fold it into a space), and the sequence begins
with `<s>`. Ids to text: decode, then `[NL]` becomes a newline. Special tokens have no spelling: `<s>` in a text is
three ordinary characters. The price of the convention is that a literal `[NL]` comes back as a newline and a literal
`▁` (SentencePiece's mark of a space) as a space; all other text survives when the model has byte pieces and does not
normalize, as those of `train_tokenizer` do.

A continuation is not the decoding of its own ids: the first space is stripped at the start of a text only, byte pieces
form characters together, and `[`, `NL]` may come as two pieces. `suffix` compares whole texts; `StreamDecoder` gives
the same text piece by piece, decoding only the few ids whose text may still change.
"""

import codecs
import hashlib
import io
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush
from pathlib import Path
from typing import Literal

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from yalm.atomic import atomic_file
from yalm.errors import YalmError

NEWLINE_PIECE = "[NL]"
MASK_PIECE = "[MASK]"
_SURROGATE = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """A SentencePiece model file with the ids of YaLM's special pieces.

    Attributes: `file` (Path), `sha256` (hex, of the file), `vocab_size`, `unk_id`, `bos_id`, `eos_id`, `newline_id`,
    `mask_id`. YalmError if the file is missing, no SentencePiece model, or lacks one of these pieces.
    """

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        try:
            content = self.file.read_bytes()
        except OSError as error:
            raise YalmError(f"{file}: cannot read the tokenizer ({error.strerror}); check the path") from None
        self._model = SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(content)
        except RuntimeError:
            raise YalmError(f"{file}: not a SentencePiece model; make one with `yalm tokenizer train`") from None
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.vocab_size = int(self._model.get_piece_size())
        self.unk_id = int(self._model.unk_id())
        self.bos_id = int(self._model.bos_id())
        self.eos_id = int(self._model.eos_id())
        self.newline_id = int(self._model.piece_to_id(NEWLINE_PIECE))
        self.mask_id = int(self._model.piece_to_id(MASK_PIECE))
        special = (self.unk_id, self.bos_id, self.eos_id, self.newline_id, self.mask_id)
        if min(special) < 0 or len(set(special)) < len(special):
            raise YalmError(
                f"{file}: lacks one of <unk>, <s>, </s>, {NEWLINE_PIECE}, {MASK_PIECE}; "
                "use a tokenizer made by `yalm tokenizer train`"
            )

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, beginning with `bos_id`. Lone surrogates, which no UTF-8 can hold, become U+FFFD."""
        return [self.bos_id, *self._model.encode(_prepared(text))]

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """`encode` of each text, on `threads` threads."""
        if not texts:
            return []
        batch = self._model.encode([_prepared(text) for text in texts], num_threads=threads)
        return [[self.bos_id, *ids] for ids in batch]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; `<s>` and `</s>` have none. YalmError for an id outside the vocabulary."""
        return self._decode(ids).replace(NEWLINE_PIECE, "\n")

    def suffix(self, prompt_ids: Sequence[int], new_ids: Sequence[int]) -> str:
        """The text that `new_ids` add after `prompt_ids`: the decoding of both without what the prompt's own shows.

        Where the prompt's text changes at its end (a character cut in the middle), the text after the last character
        in common is returned, so prompt text up to there plus suffix is always the decoding of all ids.
        """
        prompt, whole = self.decode(prompt_ids), self.decode([*prompt_ids, *new_ids])
        return whole[_common(prompt, whole) :]

    def piece(self, token: int) -> str:
        """The spelling of one id in the vocabulary. YalmError for an id outside it."""
        self._check([token])
        return str(self._model.id_to_piece(int(token)))

    def is_byte(self, token: int) -> bool:
        """Whether an id is a piece of the byte fallback, such as `<0xD0>`."""
        return bool(self._model.is_byte(token))

    def decode_after_text(self, ids: Sequence[int]) -> str:
        """The text of `ids` standing after other text, so that a leading space stays."""
        return self._decode([self.newline_id, *ids])[len(NEWLINE_PIECE) :].replace(NEWLINE_PIECE, "\n")

    def _decode(self, ids: Sequence[int]) -> str:
        self._check(ids)
        return str(self._model.decode([int(token) for token in ids])) if len(ids) else ""

    def _check(self, ids: Sequence[int]) -> None:
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise YalmError(
                    f"token {token} is outside the vocabulary; ids of {self.file} are 0…{self.vocab_size - 1}"
                )


class StreamDecoder:
    """The text of a continuation as its ids arrive: all pieces together equal `Tokenizer.suffix(prompt_ids, new_ids)`.

    Text that a later id may change is held back: a character of which some bytes are missing, and the beginning of a
    spelled `[NL]`. The window of ids kept is cut as soon as their text is settled, so a push costs the same however
    long the text is.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._window = list(prompt_ids)
        self._after_text = False  # whether text stands before the window: decides if a leading space is stripped
        self._shown = tokenizer.decode(prompt_ids)  # what of the window's text is the prompt's or was returned
        self._cut(self._shown)

    def push(self, token: int) -> str:
        """Take the next id (YalmError if outside the vocabulary); return the text that is settled by it, often all."""
        self._window.append(int(token))
        try:
            text = self._text()
        except YalmError:
            self._window.pop()
            raise
        added = self._show(text[: len(text) - self._unsettled(text)])
        self._cut(text)
        return added

    def finish(self) -> str:
        """The text held back, as it stands now that nothing follows."""
        return self._show(self._text())

    def _text(self) -> str:
        decode = self._tokenizer.decode_after_text if self._after_text else self._tokenizer.decode
        return decode(self._window)

    def _show(self, settled: str) -> str:
        """What `settled` adds to the text shown so far."""
        common = _common(self._shown, settled)
        if common < len(settled):
            self._shown = settled
        return settled[common:]

    def _unsettled(self, text: str) -> int:
        """How many characters at the end of the window's text a further id may change."""
        return self._open_bytes() or next((size for size in (3, 2, 1) if text.endswith(NEWLINE_PIECE[:size])), 0)

    def _open_bytes(self) -> int:
        """How many ids at the window's end are bytes of an incomplete character (0…3); each shows as U+FFFD."""
        tail: list[int] = []
        for token in reversed(self._window[-3:]):
            if not self._tokenizer.is_byte(token):
                break
            tail.insert(0, int(self._tokenizer.piece(token)[1:-1], 16))
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(bytes(tail))
        return len(decoder.getstate()[0])

    def _cut(self, text: str) -> None:
        """Drop the ids at the window's front whose text is settled; `text` is the window's."""
        keep = self._open_bytes()
        settled = len(text) - keep
        if (self._unsettled(text) > 0 and not keep) or (settled <= 0 and not self._after_text):
            return
        self._window = self._window[len(self._window) - keep :]
        self._shown = self._shown[settled:]
        self._after_text = True


def _prepared(text: str) -> str:
    return _SURROGATE.sub("\ufffd", text).replace("\n", NEWLINE_PIECE)


def _common(first: str, second: str) -> int:
    """Length of the common beginning."""
    if second.startswith(first):
        return len(first)
    return next((at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(second))


def train_tokenizer(
    texts: Iterable[str],
    output: str | Path,
    *,
    vocab_size: int,
    model_type: Literal["bpe", "unigram"] = "bpe",
    byte_fallback: bool = True,
    max_sentence_bytes: int = 4096,
    sample_bytes: int = 200_000_000,
    seed: int = 0,
    threads: int = 4,
) -> Tokenizer:
    """Train on the lines of `texts`, write the model file `output`, return the tokenizer.

    Lines longer than `max_sentence_bytes` are cut, at a space where there is one; beyond `sample_bytes` of them a
    uniform sample drawn by `seed` is used, so memory is bounded (SentencePiece needs several times the sample).
    Text is not normalized and all its spaces are kept; with `byte_fallback`, characters without a piece are spelled
    as bytes, so nothing is lost. Same input and arguments, same file (SentencePiece writes `threads` into it; the
    pieces do not depend on it). YalmError if there is no text, or `vocab_size` does not fit it.
    """
    sentences = _sample(_sentences(texts, max_sentence_bytes), sample_bytes, random.Random(seed))
    if not sentences:
        raise YalmError("no text to train a tokenizer on; check the input and its text field")
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            byte_fallback=byte_fallback,
            character_coverage=0.9995 if byte_fallback else 1.0,
            max_sentence_length=max_sentence_bytes,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=True,
            allow_whitespace_only_pieces=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            user_defined_symbols=[NEWLINE_PIECE, MASK_PIECE],
            num_threads=threads,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise YalmError(f"vocab_size = {vocab_size}: {_explain(str(error))}") from None
    with atomic_file(Path(output)) as temporary:
        temporary.write_bytes(model.getvalue())
    return Tokenizer(output)


def _sentences(texts: Iterable[str], max_bytes: int) -> Iterator[bytes]:
    """The non-empty lines of `texts` in UTF-8, cut to at most `max_bytes`."""
    for text in texts:
        for line in _SURROGATE.sub("\ufffd", text).split("\n"):
            rest = line.encode()
            while len(rest) > max_bytes:
                end = rest.rfind(b" ", 1, max_bytes)
                if end < 0:
                    end = max_bytes
                    while rest[end] & 0xC0 == 0x80:  # not inside a character
                        end -= 1
                yield rest[:end]
                rest = rest[end:]
            if rest.strip():
                yield rest


def _sample(sentences: Iterable[bytes], sample_bytes: int, draw: random.Random) -> list[bytes]:
    """Those sentences, in order, whose random keys are the smallest that fit into `sample_bytes`: a uniform sample."""
    kept: list[tuple[float, int, bytes]] = []  # a heap, the largest key first
    size, bound = 0, 1.0
    for number, sentence in enumerate(sentences):
        key = draw.random()
        if key >= bound:
            continue
        heappush(kept, (-key, number, sentence))
        size += len(sentence)
        while size > sample_bytes:
            largest, _, dropped = heappop(kept)
            size, bound = size - len(dropped), -largest
    return [sentence for _, _, sentence in sorted(kept, key=lambda entry: entry[1])]


def _explain(message: str) -> str:
    """SentencePiece's complaint about a training as what to change."""
    if found := re.search(r"too high.*value <= (\d+)", message):
        return f"more than this text can fill; use at most {found[1]}, or more text"
    if found := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return f"fewer than its characters need; use more than {found[1]}"
    return f"SentencePiece cannot train on this text ({' '.join(message.split())})"

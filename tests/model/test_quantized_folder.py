"""Quantized folders: the same as quantizing after loading, resumable, checked, and refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from support import GOLDEN
from yalm.errors import YalmError
from yalm.inference.loading import load
from yalm.model import convert as convert_module
from yalm.model.convert import convert_folder, convert_release, quantize_folder
from yalm.model.folder import ModelFolder, load_folder
from yalm.model.quantize import Quantization, quantize_modules
from yalm.model.release import load_release
from yalm.model.shards import read_checksums
from yalm.model.verify import streamed_logits, verify

WEIGHTS, VOCAB = GOLDEN / "weights", GOLDEN / "vocab.sp"
SHARD = "model-00003-of-00005.safetensors"
BOTH = pytest.mark.parametrize("name", ["int8", "int4"])
IDS = torch.arange(14).view(2, 7)


def convert(folder: Path, name: str | None, **options: Any) -> Path:
    quantization = Quantization.named(name) if name is not None else None
    values = {"num_heads": 4, "max_positions": 64, "quantization": quantization} | options
    return convert_release(WEIGHTS, folder, VOCAB, **values).folder


@BOTH
def test_converting_is_quantizing_after_loading(tmp_path: Path, name: str) -> None:
    made = load_folder(convert(tmp_path / "model", name, dtype="fp32"))
    expected = quantize_modules(load_release(WEIGHTS, 4, 64), Quantization.named(name))
    found = made.state_dict()
    assert found.keys() == expected.state_dict().keys()
    for key, tensor in expected.state_dict().items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key], tensor), key
    assert made.lm_head.weight is made.model.embed_tokens.tokens.weight


@BOTH
@pytest.mark.parametrize("intermediate_size", [203, 256])
def test_a_folder_of_ours_gives_the_same_bytes(tmp_path: Path, name: str, intermediate_size: int) -> None:
    direct = convert(tmp_path / "direct", name, intermediate_size=intermediate_size)
    plain = convert(tmp_path / "plain", None, intermediate_size=intermediate_size)
    quantize_folder(plain, tmp_path / "again", Quantization.named(name))
    assert read_checksums(tmp_path / "again") == read_checksums(direct)
    assert (tmp_path / "again" / "tokenizer.model").read_bytes() == VOCAB.read_bytes()


@BOTH
def test_padding_changes_nothing(tmp_path: Path, name: str) -> None:
    """In 8 bits a row's scale, in 4 the last group's, is that of the weights, whatever zeros stand behind them."""
    narrow, wide = convert(tmp_path / "narrow", name), convert(tmp_path / "wide", name, intermediate_size=512)
    assert ModelFolder(wide).config.intermediate_padding == 309
    with torch.no_grad():
        torch.testing.assert_close(load_folder(wide)(IDS), load_folder(narrow)(IDS), atol=1e-4, rtol=1e-4)


@BOTH
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_verified_and_streamed(tmp_path: Path, name: str, dtype: str) -> None:
    folder = convert(tmp_path / "model", name, dtype=dtype)
    facts = verify(folder)
    assert (facts["quantization"], facts["checksums"], facts["forward_pass"]) == (name, 9, "finite")
    with torch.no_grad():
        assert torch.equal(streamed_logits(ModelFolder(folder), IDS), load_folder(folder, dtype)(IDS))


@BOTH
def test_generates_and_scores(tmp_path: Path, name: str) -> None:
    lm = load(convert(tmp_path / "model", name))
    generation = lm.generate("дом", max_tokens=5, temperature=0)[0]
    assert len(generation.ids) == 5
    ids = [*lm.tokenizer.encode("дом"), *generation.ids]
    logprobs = lm.score_ids([ids])[0][-5:]
    greedy = lm.logits(torch.tensor([ids]))[0].log_softmax(-1)[-6:-1].amax(-1)
    torch.testing.assert_close(torch.tensor(logprobs), greedy, atol=1e-3, rtol=0)


def test_a_resumed_conversion_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls, original = convert(tmp_path / "whole", "int4"), [], convert_module.write_shard

    def stop_at_third(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(convert_module, "write_shard", stop_at_third)
        with pytest.raises(KeyboardInterrupt):
            convert(tmp_path / "model", "int4")
    options = {"num_heads": 4, "max_positions": 64, "quantization": Quantization.named("int4")}
    assert convert_release(WEIGHTS, tmp_path / "model", VOCAB, **options).kept == 2  # type: ignore[arg-type]
    assert read_checksums(tmp_path / "model") == read_checksums(whole)


def test_other_bits_start_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(convert_module, "write_description", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert(tmp_path / "model", "int4")
    quantization = Quantization.named("int8")
    options = {"num_heads": 4, "max_positions": 64, "quantization": quantization}
    assert convert_release(WEIGHTS, tmp_path / "model", VOCAB, **options).kept == 0  # type: ignore[arg-type]
    assert ModelFolder(tmp_path / "model").quantization == quantization


def test_there_is_no_way_back(tmp_path: Path) -> None:
    folder = convert(tmp_path / "model", "int8")
    for job, message in (
        (lambda: convert_folder(folder, tmp_path / "back"), "is quantized, and the released layout is not"),
        (lambda: quantize_folder(folder, tmp_path / "back", Quantization.named("int4")), "is quantized already"),
    ):
        with pytest.raises(YalmError, match=message) as error:
            job()
        assert "\n" not in str(error.value)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    source = Path(shutil.copytree(WEIGHTS, tmp_path / "source"))
    path = source / "layer_04-model_00-model_states.pt"
    tensors = torch.load(path, weights_only=True)
    tensors["mlp.dense_ffn_output.weight"][3, 3] = torch.inf
    torch.save(tensors, path)
    options = {"num_heads": 4, "max_positions": 64, "quantization": Quantization.named("int4")}
    with pytest.raises(YalmError, match=r"'model.layers.1.mlp.down_proj.weight' cannot be quantized") as error:
        convert_release(source, tmp_path / "model", VOCAB, **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


MATRIX = "model.layers.1.mlp.up_proj.weight"


def edit(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / SHARD)
        change(tensors)
        save_file(tensors, folder / SHARD)

    return spoil


def configure(**changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        values.update(changes)
        (folder / "config.json").write_text(json.dumps(values))

    return spoil


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "codes of another type": (edit(lambda t: t.update({MATRIX: t[MATRIX].view(torch.int8)})), "makes it U8"),
    "scales of another type": (
        edit(lambda t: t.update({f"{MATRIX}_scale": t[f"{MATRIX}_scale"].float()})),
        "_scale' is of F32, quantization_config in config.json makes it BF16",
    ),
    "zeros cut": (edit(lambda t: t.update({f"{MATRIX}_zero": t[f"{MATRIX}_zero"][1:]})), r"is \(202, 1\)"),
    "scales lost": (edit(lambda t: t.pop(f"{MATRIX}_scale")), SHARD),
    "other bits": (configure(quantization_config={"quant_method": "yalm", "bits": 8}), "is unknown"),
    "no bits": (configure(quantization_config={"quant_method": "yalm", "bits": 3}), "quantization_config: bits = 3"),
    "not ours": (configure(quantization_config={"quant_method": "gptq", "bits": 4}), "quant_method = 'gptq'"),
    "no object": (configure(quantization_config="int4"), "quantization_config is no JSON object"),
    "not said": (configure(quantization_config=None), "do not fit"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    folder = convert(tmp_path / "model", "int4")
    spoil, message = DAMAGES[damage]
    spoil(folder)
    with pytest.raises(YalmError, match=message) as error:
        load_folder(folder)
    assert "\n" not in str(error.value)

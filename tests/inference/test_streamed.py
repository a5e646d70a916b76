"""Models that do not fit: layers read as they run give the same numbers; where layers lie; what a plan says."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from support import GOLDEN
from yalm.errors import YalmError
from yalm.inference import placement
from yalm.inference import streamed as module
from yalm.inference.forecast import HARDWARE, forecast
from yalm.inference.language_model import LanguageModel
from yalm.inference.loading import load, plan
from yalm.inference.placement import OVERHEAD, Budget, Sizes, human, parse_bytes, place
from yalm.inference.streamed import ALIGNMENT, Reader, StreamedLayers, buffer_bytes, laid_out
from yalm.model import shards
from yalm.model.convert import quantize_folder
from yalm.model.folder import ModelFolder
from yalm.model.network import build
from yalm.model.presets import preset
from yalm.model.quantize import Quantization
from yalm.model.shards import PAGE, read_spans

PROMPTS = ["", "Повар", "If the honey is", "б\nв"]
GREEDY = json.loads((GOLDEN / "generation.json").read_text())["greedy"]


def least(folder: Path) -> int:
    """The memory that two buffers in fp32 take, with room for a cache and a few bytes more."""
    source = ModelFolder(folder)
    layer = sum(4 * source.read(name).numel() for name in source.places if name.startswith("model.layers.1."))
    table = source.read("model.embed_tokens.tokens.weight")
    return OVERHEAD + 8 * table.numel() + 2 * layer + 2**19


def load_with_free(free: int, folder: Path) -> LanguageModel:
    """Streamed, on a machine that has so many bytes free."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "_free_memory", lambda: free)
        lm = load(folder, memory=least(folder), tokens=64, texts=1, dtype="fp32")
    assert isinstance(lm.model.model.layers, StreamedLayers)
    return lm


@pytest.fixture(scope="module", params=[2**40, 0], ids=["through the cache", "past the cache"])
def streamed(folder: Path, request: pytest.FixtureRequest) -> LanguageModel:
    return load_with_free(request.param, folder)


@pytest.mark.parametrize(("free", "direct"), [(2**40, False), (0, True)])
def test_what_the_cache_cannot_keep_is_read_past_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, free: int, direct: bool
) -> None:
    lm, reads = load_with_free(free, folder), []

    def read(path: Path, offset: int, into: torch.Tensor, direct: bool) -> int:
        reads.append((into.nbytes, (into.data_ptr() - offset) % PAGE, direct))
        return shards.read_bytes(path, offset, into, direct)

    monkeypatch.setattr(module, "read_bytes", read)
    lm.generate("Повар", max_tokens=2)
    assert reads
    assert {asked for _, _, asked in reads} == {direct}
    # Straight into the buffers, wherever tensors begin in their files.
    assert not direct or {shift for _, shift, _ in reads} == {0}


@pytest.mark.parametrize("direct", [False, True])
def test_pieces_of_a_buffer_do_not_touch(folder: Path, direct: bool) -> None:
    weights = ModelFolder(folder)
    for number, layer in enumerate(build(weights.config, "meta").model.layers):
        buffer = torch.empty(buffer_bytes(layer), dtype=torch.uint8)
        pieces = laid_out(layer, f"model.layers.{number}.", buffer, Reader(weights, direct=direct)).values()
        assert [piece.shape for piece in pieces] == [spec.shape for spec in layer.state_dict().values()]
        ends = [buffer.data_ptr()]
        for piece in pieces:
            assert piece.data_ptr() >= ends[-1]
            assert direct or piece.data_ptr() % ALIGNMENT == 0
            ends.append(piece.data_ptr() + piece.nbytes)
        assert ends[-1] <= buffer.data_ptr() + len(buffer)


@pytest.mark.parametrize(
    ("device", "memory", "machine", "direct"),
    [
        ("cpu", 8, 24, True),
        ("cpu", 8, 180, True),
        ("cpu", 8, 220, False),
        ("cpu", 300, 24, False),
        ("cuda", 80, 64, True),
    ],
)
def test_the_way_of_reading_follows_the_room(device: str, memory: int, machine: int, direct: bool) -> None:
    """200 GB of weights, beside what the process takes of the machine's memory: nothing of it for a GPU."""
    budget = Budget(memory * 2**30, 0, machine * 2**30)
    options = {"dtype": "bf16", "device": torch.device(device), "budget": budget}
    assert plan(preset("yalm-100b"), torch.bfloat16, **options).direct == direct


@pytest.mark.parametrize("item", GREEDY, ids=lambda item: item["prompt"][:12])
def test_streamed_greedy_is_golden(streamed: LanguageModel, item: dict[str, Any]) -> None:
    new = len(item["output_ids"]) - len(item["prompt_ids"])
    [made] = streamed.generate(item["prompt"], temperature=0, max_tokens=new)
    assert [*item["prompt_ids"], *made.ids] == item["output_ids"][: len(item["prompt_ids"]) + len(made.ids)]


def test_a_sweep_that_was_broken_off_spoils_nothing(streamed: LanguageModel, lm: LanguageModel) -> None:
    ids = torch.randint(lm.model.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    expected = lm.logits(ids)
    for broken_at in range(3):
        for number, _ in enumerate(streamed.model.model.layers):
            if number == broken_at:
                break
        torch.testing.assert_close(streamed.logits(ids), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_quantized_layers_stream_too(folder: Path, tmp_path: Path, name: str) -> None:
    small = quantize_folder(folder, tmp_path / name, Quantization.named(name)).folder
    ids = torch.randint(500, (2, 9), generator=torch.Generator().manual_seed(0))
    whole = load(small, dtype="fp32")
    assert not isinstance(whole.model.model.layers, StreamedLayers)
    layer = buffer_bytes(whole.model.model.layers[1])  # type: ignore[index,arg-type]
    everything = load(small, dtype="fp32", tokens=4, texts=1, memory=2**40)
    sizes = Sizes.of(everything.model, packed=True)
    memory = OVERHEAD + sizes.fixed + 3 * layer + 4 * (sizes.cache_token + sizes.work_token) - 1
    lm = load(small, dtype="fp32", memory=memory, tokens=4, texts=1)
    assert isinstance(lm.model.model.layers, StreamedLayers)
    torch.testing.assert_close(lm.logits(ids), whole.logits(ids), atol=1e-5, rtol=1e-5)


def test_released_files_run_without_conversion(lm: LanguageModel, folder: Path) -> None:
    weights, vocab = GOLDEN / "weights", GOLDEN / "vocab.sp"
    for memory in (None, least(folder)):
        released = load(weights, vocab=vocab, heads=4, positions=64, memory=memory, tokens=64, texts=1, dtype="fp32")
        assert released.generate(PROMPTS, temperature=0, max_tokens=9) == lm.generate(
            PROMPTS, temperature=0, max_tokens=9
        )


def test_a_file_that_shrinks_while_the_model_runs(folder: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(folder, tmp_path / "model"))
    lm = load(own, memory=least(folder), tokens=64, texts=1, dtype="fp32")
    lm.generate("Повар", max_tokens=2)
    for shard in own.glob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(YalmError, match="is cut off; copy the file again"):
        lm.generate("Повар", max_tokens=8)


@given(rows=st.integers(1, 40), columns=st.integers(1, 9), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_tensors_are_read_block_by_block(
    tmp_path_factory: pytest.TempPathFactory, rows: int, columns: int, dtype: torch.dtype
) -> None:
    path = tmp_path_factory.mktemp("shard") / "x.safetensors"
    whole = torch.randn(rows, columns).to(dtype)
    save_file({"x": whole}, path)

    class Source:
        def span(self, name: str) -> Any:
            return read_spans(path)[name]

    before, module.BLOCK_BYTES = module.BLOCK_BYTES, 64
    try:
        for into in (torch.empty(rows, columns, dtype=dtype), torch.empty(rows, columns, dtype=torch.float64)):
            Reader(Source()).read({"x": into})  # type: ignore[arg-type]
            assert torch.equal(into, whole.to(into.dtype))
    finally:
        module.BLOCK_BYTES = before


SIZES = st.builds(
    Sizes,
    layers=st.integers(1, 90),
    layer=st.integers(1, 10**9),
    fixed=st.integers(0, 10**9),
    cache_token=st.integers(1, 10**6),
    work_token=st.integers(1, 10**6),
    parameters=st.just(1),
)


@given(SIZES, st.integers(0, 10**11), st.integers(0, 10**11), st.integers(1, 20), st.integers(1, 2000))
def test_no_placement_exceeds_its_budget(sizes: Sizes, device: int, host: int, texts: int, tokens: int) -> None:
    budget = Budget(device + OVERHEAD, host)
    try:
        found = place(sizes, budget, texts, tokens)
    except YalmError:
        smallest = sizes.fixed + min(2, sizes.layers) * sizes.layer + tokens * sizes.cache_token
        assert smallest + min(tokens, 4096) * sizes.work_token > device
        return
    assert len(found.tiers) == sizes.layers
    assert found.device_bytes <= budget.device
    assert found.host_bytes <= budget.host
    assert found.cache >= tokens * sizes.cache_token
    assert found.resident or found.buffers == 2 * sizes.layer
    if "disk" in found.tiers:  # no room was left for another layer
        assert found.host_bytes + sizes.layer > budget.host


def test_amounts_of_memory() -> None:
    assert [parse_bytes(text) for text in ("8GiB", "80GB", "500m", "7", " 1.5 kib ")] == [
        8 * 2**30,
        80 * 10**9,
        500 * 2**20,
        7,
        1536,
    ]
    assert human(8 * 2**30) == "8.0 GiB"


@pytest.mark.parametrize("hardware", HARDWARE)
@pytest.mark.parametrize("dtype", ["auto", "int8", "int4"])
def test_the_plan_of_the_100b(hardware: str, dtype: str) -> None:
    host_memory = None if hardware.startswith("cpu") else "64GiB"
    facts = forecast("yalm-100b", hardware=hardware, dtype=dtype, texts=1, tensor=4, host_memory=host_memory)
    weights = facts["bytes"]["layer"] * 80
    assert sum(facts["layers"].values()) == 80
    # A token takes at least the time to read this rank's weights once at the data sheet's bandwidth.
    assert facts["seconds"]["per_token"] >= weights / HARDWARE[hardware].bandwidth


@pytest.mark.parametrize(
    ("hardware", "memory", "hidden"),
    [("cpu-2-channels", None, True), ("cpu-12-channels", "100GB", False), ("rtx-3090", None, True)],
)
def test_reading_is_hidden_unless_it_is_copying(hardware: str, memory: str | None, hidden: bool) -> None:
    """100 GB of 12 channels' memory leave the cache room for the rest of the weights."""
    facts = forecast("yalm-100b", hardware=hardware, memory=memory, texts=1)
    seconds = facts["seconds"]
    assert facts["reading_hidden"] == hidden
    expected = max if hidden else lambda *parts: sum(parts)
    assert seconds["sweep"] == pytest.approx(expected(seconds["compute"], seconds["read"]))
    bandwidth = 3e9 if hidden else HARDWARE[hardware].bandwidth
    assert seconds["read"] == pytest.approx(facts["bytes"]["read_per_sweep"] / bandwidth)


@pytest.mark.parametrize("free", [2**40, 0])
def test_a_measured_plan_has_the_same_rule(folder: Path, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(placement, "_free_memory", lambda: free)
    facts = forecast(folder, device="cpu", memory=least(folder), tokens=64, texts=1, dtype="fp32")
    seconds = facts["seconds"]
    assert facts["past_the_cache"] == facts["reading_hidden"] == (free == 0)
    both = (seconds["compute"], seconds["read"])
    assert seconds["sweep"] == pytest.approx(max(both) if free == 0 else sum(both))
    assert min(both) > 0


@pytest.mark.parametrize("way", [{"hardware": "cpu-2-channels"}, {"device": "cpu"}])
def test_host_memory_beside_a_cpu_is_refused(folder: Path, way: dict[str, str]) -> None:
    with pytest.raises(YalmError, match="--host-memory is for layers beside a GPU"):
        forecast(folder, host_memory="1GiB", **way)


def test_the_command_shows_a_plan(folder: Path) -> None:
    command = [sys.executable, "-m", "yalm", "generate", str(folder), "--plan", "--json", "--prompt", "Повар"]
    facts = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert facts["layers"] == {"device": 3, "host": 0, "disk": 0}
    assert facts["seconds"]["per_token"] > 0


def test_two_processes_are_started_and_asked_as_one(folder: Path) -> None:
    def run(*options: str, text: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "yalm", "generate", str(folder), "--temperature", "0", "--max-tokens", "8"]
        return subprocess.run([*command, *options], capture_output=True, text=True, input=text, check=False)

    alone, two = run("--prompt", "Повар"), run("--prompt", "Повар", "--devices", "2")
    assert (two.returncode, two.stdout) == (0, alone.stdout), two.stderr
    asked = run("--devices", "tensor=1,pipeline=2", text="Повар\n" + "%" * 300 + "\nПовар\n")
    assert (asked.returncode, asked.stdout) == (0, 2 * alone.stdout), asked.stderr
    assert "300" in asked.stderr or "positions" in asked.stderr
    wrong = run("--prompt", "Повар", "--devices", "3")
    assert wrong.returncode == 2
    assert "4 heads" in wrong.stderr
    assert "Traceback" not in wrong.stderr

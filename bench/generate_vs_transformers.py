"""Generation beside a GPT-NeoX of transformers, and of vLLM's CPU build where there is one.

    python bench/generate_vs_transformers.py [--quick] [--json FILE] [--vllm-python PATH] [--profile]

Each side runs in a process of its own, through its own front door: `engine.run`, `model.generate`, `LLM.generate`. All
are greedy, fp32, random weights, prompts of equal length, end-of-text switched off, and as many parameters (within 2 %,
the tied table counted once). They take turns within each repetition, so that a drift of the machine meets all.

Prefill is the time of a call for one new token; decoding is what a call for N + 1 tokens takes beyond that, over N
steps. Share of the bandwidth: the bytes of all weights that a step multiplies with, per second, against the best
matrix-vector product measured in the same run, on a matrix that no cache holds.

vLLM has no torch in common with us, so its interpreter is named; it is given a folder with a config and makes up
weights of its own. It runs eager, without its prefix cache, which would skip the prefill.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

GOLDEN_TOKENIZER = Path(__file__).resolve().parents[1] / "tests" / "golden" / "yalm-tiny" / "vocab.sp"
#        vocabulary, embedding, hidden, layers, heads, feed-forward, positions
SIZES = {
    "tiny": (2_048, 64, 128, 2, 4, 352, 1_024),
    "110m": (50_304, 512, 768, 12, 12, 2_048, 1_024),
    "400m": (50_304, 512, 1_024, 29, 16, 2_816, 1_024),
}
# vLLM's worker polls for about a second after its last answer; the next side's turn begins after that.
SETTLING_SECONDS = 1.5
# Seconds that `generate(batch, prompt_tokens, new_tokens)` takes.
Generate = Callable[[int, int, int], float]


def config(size: str) -> Any:
    from yalm.model.config import ModelConfig

    names = ("vocab_size", "embedding_size", "hidden_size", "num_layers", "num_heads", "intermediate_size")
    return ModelConfig(**dict(zip((*names, "max_positions"), SIZES[size], strict=True)))


def prompts(size: str, batch: int, length: int) -> list[list[int]]:
    """Ids beyond the special ones, the same for every side."""
    vocab = SIZES[size][0]
    return [[5 + (row * 7919 + place * 104_729) % (vocab - 5) for place in range(length)] for row in range(batch)]


# --- the sides, each in its own process ---------------------------------------------------------------------------


def start_yalm(size: str, folder: Path, packed: bool = True) -> Generate:
    import torch

    from yalm.inference.engine import Request, run
    from yalm.inference.linear import pack
    from yalm.inference.sampling import SamplingSettings
    from yalm.model.network import build, initialize
    from yalm.tokens.tokenizer import Tokenizer

    model = initialize(build(config(size)), seed=0)
    tokenizer = Tokenizer(folder / "tokenizer.model")
    with torch.no_grad():
        model.lm_head.bias[tokenizer.eos_id] = -1e4
    if packed:
        pack(model)

    def generate(batch: int, length: int, new: int) -> float:
        requests = [Request(ids, row) for row, ids in enumerate(prompts(size, batch, length))]
        settings = SamplingSettings(temperature=0, max_tokens=new)
        start = time.perf_counter()
        made = sum(1 for _ in run(model, tokenizer, requests, settings, batch))
        seconds = time.perf_counter() - start
        assert made == batch * new
        return seconds

    return generate


def start_transformers(size: str, folder: Path) -> Generate:
    import torch

    from neox import Neox, same_parameters

    model = Neox(same_parameters(config(size)), seed=0).model.eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    def generate(batch: int, length: int, new: int) -> float:
        ids = torch.tensor(prompts(size, batch, length))
        mask = torch.ones_like(ids)
        start = time.perf_counter()
        made = model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, use_cache=True)
        seconds = time.perf_counter() - start
        assert made.shape == (batch, length + new)
        return seconds

    return generate


def start_vllm(size: str, folder: Path) -> Generate:
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(folder / "neox"),
        skip_tokenizer_init=True,
        load_format="dummy",
        dtype="float32",
        enforce_eager=True,
        enable_prefix_caching=False,
        max_model_len=SIZES[size][-1],
        max_num_seqs=8,
    )

    def generate(batch: int, length: int, new: int) -> float:
        ids = [{"prompt_token_ids": row} for row in prompts(size, batch, length)]
        params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
        start = time.perf_counter()
        made = llm.generate(ids, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        assert all(len(one.outputs[0].token_ids) == new for one in made)
        return seconds

    return generate


SIDES: dict[str, Callable[[str, Path], Generate]] = {
    "yalm": start_yalm,
    "yalm, plain linears": lambda size, folder: start_yalm(size, folder, packed=False),
    "transformers": start_transformers,
    "vLLM": start_vllm,
}


def worker(side: str, size: str, folder: Path, threads: int) -> None:
    """Answer requests, one a line on standard input, on what was standard output; prints of libraries go elsewhere."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(threads)
    generate = SIDES[side](size, folder)
    print(json.dumps("ready"), file=answers)
    for line in sys.stdin:
        print(json.dumps(generate(*json.loads(line))), file=answers)


class Side:
    """A side's process, seen from here."""

    def __init__(self, name: str, python: str, size: str, folder: Path, threads: int) -> None:
        self.name = name
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
        arguments = ["--worker", name, "--size", size, "--folder", str(folder), "--threads", str(threads)]
        self.process = subprocess.Popen(
            [python, __file__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if name == "vLLM" else None,
            text=True,
            env=environment,
            start_new_session=True,  # vLLM ends its process group
        )
        self.ready = self._answer() == "ready"

    def seconds(self, batch: int, length: int, new: int) -> float:
        assert self.process.stdin is not None
        print(json.dumps([batch, length, new]), file=self.process.stdin, flush=True)
        answer = self._answer()
        if not isinstance(answer, float):
            raise RuntimeError(f"{self.name} ended with code {self.process.wait()}")
        return answer

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


# --- measuring ------------------------------------------------------------------------------------------------------


def prepare(size: str, folder: Path) -> None:
    """A tokenizer with as many pieces as the model has ids, and GPT-NeoX's config for vLLM."""
    from sentencepiece import sentencepiece_model_pb2

    from neox import same_parameters

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(GOLDEN_TOKENIZER.read_bytes())
    for number in range(len(proto.pieces), SIZES[size][0]):
        proto.pieces.add(piece=f"▁w{number}", score=-float(number))
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    theirs = same_parameters(config(size))
    (folder / "neox").mkdir()
    (folder / "neox" / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["GPTNeoXForCausalLM"],
                "model_type": "gpt_neox",
                "vocab_size": theirs.vocab_size,
                "hidden_size": theirs.hidden_size,
                "num_hidden_layers": theirs.num_layers,
                "num_attention_heads": theirs.num_heads,
                "intermediate_size": theirs.intermediate_size,
                "max_position_embeddings": theirs.max_positions,
                "tie_word_embeddings": True,
                "torch_dtype": "float32",
                "bos_token_id": 1,
                "eos_token_id": 2,
            }
        )
    )


def bandwidths() -> dict[str, float]:
    """Bytes/s of fp32 weights through a matrix-vector product, by torch.mv (MKL) and as our packed layers read them."""
    import torch

    from measure import best, gemv_bandwidth
    from yalm.inference.linear import PackedLinear

    rows, columns = 27_308, 2_560
    vector = torch.randn(1, columns)
    with torch.inference_mode():
        packed = PackedLinear(torch.nn.Linear(columns, rows))
        seconds = best(lambda: packed(vector), 20).wall
    return {"torch.mv": gemv_bandwidth(rows, columns), "packed layers": 4 * rows * columns / seconds}


def compare(size: str, options: argparse.Namespace) -> None:
    """Run all sides at one size and print the table."""
    import torch

    from measure import median, ranged, report
    from neox import same_parameters
    from yalm.model.costs import matmul_parameters, parameters

    torch.set_num_threads(options.threads)
    ours, theirs = config(size), same_parameters(config(size))
    counts = {"yalm": parameters(ours)["total"], "GPT-NeoX": theirs.parameters}
    assert abs(counts["GPT-NeoX"] / counts["yalm"] - 1) < 0.02, counts
    h = theirs.hidden_size
    read = {
        "yalm": 4 * sum(matmul_parameters(ours).values()),
        "GPT-NeoX": 4 * (theirs.num_layers * (4 * h * h + 2 * h * theirs.intermediate_size) + h * theirs.vocab_size),
    }
    peaks = bandwidths()
    names = ["yalm", *(["yalm, plain linears"] if options.plain else []), "transformers"]
    with TemporaryDirectory() as name:
        prepare(size, Path(name))
        sides = [Side(side, sys.executable, size, Path(name), options.threads) for side in names]
        if options.vllm_python:
            sides.append(Side("vLLM", options.vllm_python, size, Path(name), options.threads))
        else:
            print("vLLM: left out; name an interpreter that has it with --vllm-python", file=sys.stderr)
        for side in [side for side in sides if not side.ready]:
            print(f"{side.name}: left out; it does not start there", file=sys.stderr)
            sides.remove(side)
        rows = []
        for batch in options.batches:
            prefill, decode = measure(sides, batch, options)
            for side in sides:
                step = batch / median(decode[side.name])
                kind = "yalm" if side.name.startswith("yalm") else "GPT-NeoX"
                rows.append(
                    {
                        "side": side.name,
                        "batch": batch,
                        "prefill tokens/s": ranged(prefill[side.name]),
                        "decode tokens/s": ranged(decode[side.name], 1),
                        "decode against transformers": median(decode[side.name]) / median(decode["transformers"]),
                        "weights GB/s": read[kind] / step / 1e9,
                        "share of the best mat-vec": read[kind] / step / max(peaks.values()),
                    }
                )
        for side in sides:
            side.close()
    facts: dict[str, Any] = {f"{kind} parameters": count for kind, count in counts.items()}
    facts |= {f"mat-vec GB/s by {name}": round(value / 1e9, 1) for name, value in peaks.items()}
    facts |= {"prompt tokens": options.prompt, "decoded tokens": options.new, "repetitions": options.repetitions}
    report(f"Generation, {size}, fp32: median (min-max)", rows, options.json, **facts)


def measure(
    sides: Sequence[Side], batch: int, options: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Prefill and decode tokens/s of each side and repetition."""
    prefill: dict[str, list[float]] = {side.name: [] for side in sides}
    decode: dict[str, list[float]] = {side.name: [] for side in sides}
    for side in sides:
        side.seconds(batch, options.prompt, 2)
    for repetition in range(options.repetitions):
        for side in sides:
            time.sleep(SETTLING_SECONDS)
            first = min(side.seconds(batch, options.prompt, 1) for _ in range(2))
            whole = side.seconds(batch, options.prompt, options.new + 1)
            prefill[side.name].append(batch * options.prompt / first)
            if whole <= first:
                raise SystemExit(f"{side.name}: {options.new} more tokens took no more time; the machine is too busy")
            decode[side.name].append(batch * options.new / (whole - first))
        print(f"batch {batch}: repetition {repetition + 1} of {options.repetitions}", file=sys.stderr)
    return prefill, decode


def profile(size: str, options: argparse.Namespace) -> None:
    """Where the CPU time of our decode steps goes, by operation, against the bandwidth limit of their weights."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    from measure import report
    from yalm.inference.cache import KeyValueCache
    from yalm.inference.engine import last_logits
    from yalm.inference.linear import pack
    from yalm.model.costs import matmul_parameters
    from yalm.model.network import build, initialize

    torch.set_num_threads(options.threads)
    model = pack(initialize(build(config(size)), seed=0))
    limit = 4 * sum(matmul_parameters(model.config).values()) / max(bandwidths().values())
    for batch in options.batches:
        cache = KeyValueCache(model, batch, options.prompt + options.new + 8, torch.float32, "cpu")
        for _ in range(batch):
            cache.add_row()
        last_logits(model, cache, prompts(size, batch, options.prompt))
        last_logits(model, cache, [[5]] * batch)
        with profiler(activities=[ProfilerActivity.CPU]) as trace:
            start = time.perf_counter()
            for _ in range(options.new):
                last_logits(model, cache, [[5]] * batch)
            seconds = (time.perf_counter() - start) / options.new
        events = sorted(trace.key_averages(), key=lambda event: -event.self_cpu_time_total)[:12]
        total = sum(event.self_cpu_time_total for event in trace.key_averages())
        rows = [
            {"operation": event.key, "share": event.self_cpu_time_total / total, "calls": event.count // options.new}
            for event in events
        ]
        facts = {"batch": batch, "ms a step": round(1e3 * seconds, 1), "ms at the bandwidth": round(1e3 * limit, 1)}
        report(f"A decode step of ours, {size}", rows, options.json, **facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run of a tiny size")
    parser.add_argument("--profile", action="store_true", help="our decode step by operation, instead")
    parser.add_argument("--plain", action="store_true", help="also ours without packed linear layers")
    parser.add_argument("--json", type=Path, help="append the tables to this file, as JSON lines")
    parser.add_argument("--vllm-python", help="interpreter that has vllm-cpu")
    parser.add_argument("--sizes", nargs="+", default=["110m", "400m"], choices=list(SIZES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=32, help="decode steps timed")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--worker", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--size", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options.worker, options.size, options.folder, options.threads)
    if options.quick:
        options.sizes, options.repetitions, options.new, options.prompt = ["tiny"], 2, 64, 16
    for size in options.sizes:
        if options.profile:
            profile(size, options)
        else:
            compare(size, options)


if __name__ == "__main__":
    main()

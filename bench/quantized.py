"""What quantized weights cost and gain: time of products beside fp32 and bf16, quality beside the plain model.

    python bench/quantized.py kernels [--threads 1 2] [--quick] [--json FILE]
    python bench/quantized.py quality MODEL --texts ru=validation.ru.jsonl en=validation.en.jsonl [--json FILE]

Kernels: one linear layer of the 100B, and a small one, at several numbers of rows; the best of some calls. fp32 and
bf16 are products with weights packed as for generation (`inference/linear.py`); int8 and int4 read the plain layout
that lies on disk. Their columns are milliseconds, GB/s of the weight's bytes (with scales and zeros), that as a
share of the read bandwidth measured in the same run, and the speed against fp32 (the bytes allow 4 and
nearly 8 times). With one thread time is the process's CPU time, the better clock on a shared machine; else wall time.

The bandwidth is that of fp32's own packed matrix-vector product over the largest weight, which no cache holds.

Quality: the folder's weights in fp32, and the same rounded to int8 and int4; nats a token on whole texts by language,
and logits against fp32's: mean and largest absolute difference, and KL(fp32 ‖ quantized) in nats, means over tokens.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from measure import best, report
from yalm.inference.language_model import LanguageModel
from yalm.inference.linear import PackedLinear, pack
from yalm.model.folder import TOKENIZER_FILE, load_folder
from yalm.model.ops.quantized_linear import quantized_linear
from yalm.model.quantize import Quantization, quantize, quantize_modules
from yalm.tokens.tokenizer import Tokenizer

#        outputs N, inputs K
SIZES = [(4_096, 1_024), (10_240, 10_240), (27_648, 10_240), (30_720, 10_240), (10_240, 27_648)]
BATCHES = [1, 4, 8, 16, 64, 256]
WIDTHS = ("int8", "int4")


def packed(weight: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
    linear = nn.Linear(*weight.shape[::-1], device="meta")
    linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(bias)
    return PackedLinear(linear)


def quantized(weight: Tensor, bias: Tensor, name: str) -> tuple[Callable[[Tensor], Tensor], int]:
    """The product with a weight of that many bits, and its bytes."""
    made = quantize(weight, Quantization.named(name))
    tensors = (made["weight"], made["weight_scale"], made.get("weight_zero"), bias)
    return lambda x: quantized_linear(x, *tensors), sum(tensor.nbytes for tensor in made.values())


def kernels(arguments: argparse.Namespace) -> None:
    sizes = SIZES[:1] if arguments.quick else SIZES
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        rows = []
        for outputs, inputs in sizes:
            weight, bias = torch.randn(outputs, inputs) * 0.02, torch.randn(outputs)
            sides: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
                "fp32": (packed(weight, bias), weight.nbytes),
                "bf16": (packed(weight.bfloat16(), bias.bfloat16()), weight.nbytes // 2),
            } | {name: quantized(weight, bias, name) for name in WIDTHS}
            for batch in BATCHES:
                x = torch.randn(batch, inputs)
                seconds = {}
                for name, (product, _) in sides.items():
                    typed = x.bfloat16() if name == "bf16" else x
                    took = best(lambda product=product, typed=typed: product(typed), 3 if batch > 16 else 7)
                    seconds[name] = took.cpu if threads == 1 else took.wall
                rows.append((outputs, inputs, batch, seconds, {name: size for name, (_, size) in sides.items()}))
        largest = max(size["fp32"] for *_, size in rows)
        read = max(size["fp32"] / took["fp32"] for *_, took, size in rows if size["fp32"] == largest)
        table = []
        for outputs, inputs, batch, seconds, size in rows:
            row: dict[str, Any] = {"N": outputs, "K": inputs, "batch": batch}
            row |= {f"{name} ms": seconds[name] * 1e3 for name in seconds}
            for name in WIDTHS:
                row[f"{name} GB/s"] = size[name] / seconds[name] / 1e9
                row[f"{name} of bandwidth"] = f"{size[name] / seconds[name] / read:.0%}"
                row[f"{name} × fp32"] = seconds["fp32"] / seconds[name]
            table.append(row)
        clock = "CPU" if threads == 1 else "wall"
        report("Quantized linear layers", table, arguments.json, clock=clock, bandwidth=f"{read / 1e9:.0f} GB/s")


@torch.inference_mode()
def quality(arguments: argparse.Namespace) -> None:
    tokenizer = Tokenizer(arguments.model / TOKENIZER_FILE)
    texts = dict(item.split("=", 1) for item in arguments.texts)
    models = {"fp32": pack(load_folder(arguments.model))}
    models |= {name: pack(quantize_modules(load_folder(arguments.model), Quantization.named(name))) for name in WIDTHS}
    limit = models["fp32"].config.max_positions
    rows = []
    for language, file in texts.items():
        lines = Path(file).read_text(encoding="utf-8").splitlines()[: arguments.documents]
        ids = [tokenizer.encode(json.loads(line)["text"])[: limit + 1] for line in lines]
        start = time.perf_counter()
        for name, model in models.items():
            logprobs = [value for row in LanguageModel(model, tokenizer).score_ids(ids) for value in row]
            row: dict[str, Any] = {"texts": language, "width": name, "tokens": len(logprobs)}
            row["nats a token"] = -sum(logprobs) / len(logprobs)
            differences = [_differences(models["fp32"], model, torch.tensor([tokens[:-1]])) for tokens in ids]
            weights = torch.tensor([len(tokens) - 1.0 for tokens in ids])
            mean, most, divergence = (torch.tensor(values) for values in zip(*differences, strict=True))
            row["logits: mean difference"] = float((mean * weights).sum() / weights.sum())
            row["largest"] = float(most.max())
            row["KL, nats"] = f"{float((divergence * weights).sum() / weights.sum()):.2e}"
            rows.append(row)
        print(f"{language}: {time.perf_counter() - start:.0f} s", flush=True)
    report(f"Quality of quantized weights: {arguments.model.name}", rows, arguments.json)


def _differences(exact: torch.nn.Module, model: torch.nn.Module, ids: Tensor) -> tuple[float, float, float]:
    """Mean and largest difference of the logits, and the mean KL divergence of the distributions."""
    left, right = exact(ids)[0].double(), model(ids)[0].double()
    p, q = left.log_softmax(-1), right.log_softmax(-1)
    error = (left - right).abs()
    return float(error.mean()), float(error.max()), float((p.exp() * (p - q)).sum(-1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    jobs = parser.add_subparsers(required=True)
    job = jobs.add_parser("kernels")
    job.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    job.add_argument("--quick", action="store_true", help="the small size only")
    job.set_defaults(run=kernels)
    job = jobs.add_parser("quality")
    job.add_argument("model", type=Path, help="a model folder, not quantized")
    job.add_argument("--texts", nargs="+", required=True, metavar="LANGUAGE=FILE", help="JSON lines with `text`")
    job.add_argument("--documents", type=int, default=1_000, help="at most so many of each file")
    job.set_defaults(run=quality)
    for job in jobs.choices.values():
        job.add_argument("--json", type=Path, help="append the results to this file")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()

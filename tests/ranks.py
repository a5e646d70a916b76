"""Several ranks on this machine, talking by gloo, and what a language model says on each of them."""

import os
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from processes import context
from support import GOLDEN, GOLDEN_CONFIG
from yalm.errors import YalmError
from yalm.inference import parallel
from yalm.inference.language_model import LanguageModel
from yalm.inference.loading import plan, realize
from yalm.inference.parallel import TIMEOUT, Seat, Shard, join
from yalm.inference.placement import Budget, Tier
from yalm.model.release import Release
from yalm.model.shards import Span
from yalm.tokens.tokenizer import Tokenizer

PROMPTS = ["", "Повар", "If the honey is", "б\nв", "Сегодня щавель стоит, а  мёд №5", "%", "x" * 30]


def run_ranks(ranks: int, work: Callable[..., Any], *arguments: Any, seconds: float = 280) -> list[Any]:
    """What `work(*arguments)` returns on each of as many processes, which find each other as under torchrun.

    The processes live until all are done, or for so many seconds. An exception of one rank ends them all and is raised
    here.
    """
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    with ProcessPoolExecutor(ranks, context()) as pool:
        futures = [pool.submit(_run_rank, rank, ranks, store.port, work, arguments) for rank in range(ranks)]
        done, pending = wait(futures, timeout=seconds, return_when=FIRST_EXCEPTION)
        if pending:  # for the one that failed, or for ever
            for process in list(pool._processes.values()):
                process.kill()
        return [future.result() for future in sorted(futures, key=lambda future: future not in done)]


def _run_rank(rank: int, ranks: int, port: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    torch.set_num_threads(1)
    return work(*arguments)


class RecordingSource(Release):
    """The golden weights; notes which tensors were read."""

    def __init__(self) -> None:
        config = GOLDEN_CONFIG
        super().__init__(GOLDEN / "weights", config["num_attention_heads"], config["max_position_embeddings"])
        self.names: list[str] = []

    def span(self, name: str) -> Span | None:
        self.names.append(name)
        return super().span(name)


def observe(lm: LanguageModel) -> dict[str, Any]:
    """Logits, continuations of prompts that come and go in a batch of three, and scores."""
    ids = torch.randint(lm.model.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(0))
    scores = lm.score([prompt for prompt in PROMPTS if prompt])
    return {
        "logits": lm.logits(ids).numpy(),
        "greedy": [one.ids for one in lm.generate(PROMPTS, batch_size=3, temperature=0, max_tokens=24)],
        "sampled": [one.text for one in lm.generate(PROMPTS, batch_size=3, seed=5, max_tokens=16, num_samples=2)],
        "scores": np.concatenate([score.logprobs for score in scores]),
    }


def observe_parallel(
    tensor: int, pipeline: int, dtype: str = "fp32", memory: int = 2**40, fault: str | None = None, disk: bool = False
) -> dict[str, Any]:
    """What one rank observes, what it read and what it holds; `fault` names one of `FAULTS`.

    With `disk` no layer has a place in memory, also where its stage has no more than the two that buffers hold.
    """
    if fault:
        FAULTS[fault]()
    mesh = join(tensor, pipeline)
    source = RecordingSource()
    options = {"dtype": dtype, "device": torch.device("cpu"), "budget": Budget(memory), "tokens": 8}
    chosen = plan(source.config, source.dtype, seat=Seat.of(mesh), **options)
    if disk:
        tiers: tuple[Tier, ...] = ("disk",) * len(chosen.placement.tiers)
        chosen = replace(chosen, placement=replace(chosen.placement, tiers=tiers))
    held = sum(spec.numel() for name, spec in chosen.model.model.layers.named_parameters() if spec.dim() == 2)
    model = realize(chosen, source, mesh)
    lm = LanguageModel(model, Tokenizer(GOLDEN / "vocab.sp"), mesh=mesh)
    seen = observe(lm)
    dist.destroy_process_group()
    sizes = {"held": held, "layers": model.local_layers, "heads": model.local_heads}
    return seen | sizes | {"read": source.names, "tiers": chosen.placement.tiers}


def _bias_on_every_rank() -> None:
    right = Shard.slice

    def wrong(self: Shard, name: str, shape: Any) -> Any:
        return None if name.endswith(("o_proj.bias", "down_proj.bias")) else right(self, name, shape)

    Shard.slice = wrong  # type: ignore[method-assign]


def _no_sum() -> None:
    parallel._summed = lambda group: lambda module, inputs, output: output  # type: ignore[assignment]


def _first_layers_on_every_stage() -> None:
    right = parallel.stages
    parallel.stages = lambda layers, ranks: [right(layers, ranks)[0]] * ranks  # type: ignore[assignment]


FAULTS = {
    "bias on every rank": _bias_on_every_rank,
    "no sum": _no_sum,
    "first layers on every stage": _first_layers_on_every_stage,
}


def _divided(tensor: int, pipeline: int, timeout: timedelta = TIMEOUT) -> LanguageModel:
    mesh = join(tensor, pipeline, timeout=timeout)
    source = RecordingSource()
    options = {"device": torch.device("cpu"), "budget": Budget(2**40)}
    model = realize(plan(source.config, source.dtype, seat=Seat.of(mesh), **options), source, mesh)
    return LanguageModel(model, Tokenizer(GOLDEN / "vocab.sp"), mesh=mesh)


def wait_for_silent_ranks(tensor: int, pipeline: int) -> str:
    """The first rank computes, the others live and do not: what the first one makes of it."""
    lm = _divided(tensor, pipeline, timedelta(seconds=10))
    if not lm.leads:
        return "silent"
    try:
        lm.model(torch.tensor([[1, 5, 6]]))
    except YalmError as error:
        return str(error)
    return "no error"


def lose_the_second_rank() -> str:
    """It hears what to do, and leaves: what the first one makes of it."""
    try:
        with _divided(1, 2) as lm:
            if lm.leads:
                lm.generate("", max_tokens=1)
            else:
                lm._tell(None)
                lm._leave()
    except YalmError as error:
        return str(error)
    return "no error"


def seconds_of_waiting() -> tuple[float, float]:
    """How long this rank waits for what to do next, and for others while it does it."""
    lm = _divided(1, 2)
    groups = [lm._jobs, lm.mesh["pipeline"].get_group()]
    return tuple(group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in groups)

"""What a rank does in the tests of data parallelism: whole runs, a count of its bytes, a record of its gathers."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from yalm.errors import YalmError
from yalm.model.config import ModelConfig
from yalm.model.network import Yalm, build, initialize
from yalm.profiling.profile import profile
from yalm.training import parallel, tensor
from yalm.training.loop import train
from yalm.training.optimizer import make_optimizer
from yalm.training.parallel import join_world, parallelize, plan_communication
from yalm.training.settings import ComputeSettings, OptimizerSettings, TrainSettings

CONFIG = ModelConfig(
    vocab_size=512, embedding_size=32, hidden_size=64, num_layers=4, num_heads=4, intermediate_size=160
)
SEQUENCES, LENGTH = 2, 48
IDS = torch.arange(SEQUENCES * LENGTH).view(SEQUENCES, LENGTH)


@contextmanager
def one_world() -> Iterator[None]:
    """The ranks find each other once; what joins and leaves worlds in between does so here."""
    dist.init_process_group("gloo")
    with patch.object(dist, "init_process_group"), patch.object(dist, "destroy_process_group"):
        yield
    dist.destroy_process_group()


def train_each(runs: list[TrainSettings]) -> None:
    """Train run after run, together with the other processes."""
    with one_world():
        for settings in runs:
            torch.compiler.reset()  # or it stops compiling a function that it has compiled for eight models' layers
            train(settings)


def impossible_divisions(settings: TrainSettings) -> str:
    """What a rank says of a run that cannot be."""
    try:
        train(settings)
    except YalmError as error:
        return str(error)
    return "no error"


def profile_each(runs: list[TrainSettings]) -> list[dict[str, Any] | None]:
    """Profile two steps of run after run, together with the other processes."""
    with one_world():
        return [profile(settings, steps=2) for settings in runs]


class Ledger(TorchDispatchMode):
    """Who made each storage that is alive: the network (activations) or what surrounds it (gathered weights)."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, str]] = {}
        self.kind = "gathered"
        self.highest: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        # Computing again, within the backward pass, makes activations; the pass itself makes gradients.
        backward = torch._C._current_graph_task_id() != -1
        kind = "gradients" if backward and self.kind == "gathered" else self.kind
        for made in tree_leaves(output):
            if isinstance(made, Tensor) and not isinstance(made, DTensor) and made.layout == torch.strided:
                reference = StorageWeakRef(made.untyped_storage())
                self.made.setdefault(reference.cdata, (reference, kind))
        if func is torch.ops.fsdp.split_with_sizes_copy.default:
            self.look()
            # What is unpacked is done with, though gloo's thread may hold it on for a moment.
            del self.made[StorageWeakRef(args[0].untyped_storage()).cdata]
        return output

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """Do not count these, of which the network may make views."""
        for given in tensors:
            local = given.to_local() if isinstance(given, DTensor) else given
            reference = StorageWeakRef(local.untyped_storage())
            self.made[reference.cdata] = reference, "given"

    def forget_activations(self) -> None:
        """After a backward pass: what is left of what the network made are gradients, added up where they were made."""
        self.made = {
            key: (reference, "gradients" if kind == "activations" else kind)
            for key, (reference, kind) in self.made.items()
        }

    def look(self) -> None:
        """Note the bytes that are alive of each kind, if they are more than ever before."""
        time.sleep(0.001)  # gloo's thread lets go of what was sent only a moment after it has arrived
        alive: Counter[str] = Counter()
        for reference, kind in list(self.made.values()):
            storage = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
            alive[kind] += storage.nbytes() if storage is not None else 0
        self.highest |= alive

    def watch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose work makes activations; looked at before and after, also where recomputing leaves early."""

        def watched(*arguments: Any, **named: Any) -> Any:
            self.look()
            before, self.kind = self.kind, "activations"
            try:
                return function(*arguments, **named)
            finally:
                self.kind = before
                self.look()

        return watched


def count_bytes(cases: list[tuple[ComputeSettings, int]]) -> list[dict[str, int]]:
    """The bytes of a step by kind, each at its highest, for settings and a number of micro-batches."""
    with one_world():
        return [_count_bytes(settings, micro_batches) for settings, micro_batches in cases]


def _count_bytes(settings: ComputeSettings, micro_batches: int) -> dict[str, int]:
    ledger = Ledger()
    with join_world(settings) as world:
        model = initialize(build(CONFIG), seed=0)
        for part in (model.model.embed_tokens, *model.model.layers, model.model.norm):
            part.forward = ledger.watch(part.forward)
        with patch.object(parallel, "native_attention"):  # the formula is of GPUs, which keep what they turned
            parallelize(model, world, settings)
        if world.link and world.link.stage > 0:  # in place of the embedding's is now what receives
            model.model.embed_tokens.forward = ledger.watch(model.model.embed_tokens.forward)
        optimizer = make_optimizer(model, OptimizerSettings(), seed=0)
        gradients = 0
        model.cross_entropy = ledger.watch(model.cross_entropy)
        ledger.leave_out(model.parameters())
        losses: dict[int, Tensor] = {}
        # The output's gathered positions are made after its module.
        with ledger, patch.object(tensor, "gather", ledger.watch(tensor.gather)):
            for kind, number in world.passes(micro_batches):
                if kind == "forward":
                    losses[number] = model(IDS, IDS.roll(-1, 1))
                    continue
                plan_communication(model, settings, last=number == micro_batches - 1)
                losses.pop(number).backward()
                if not losses:
                    ledger.forget_activations()
                held = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
                gradients = max(gradients, _bytes(held))
        optimizer.step()
    state = [value for values in optimizer.state.values() for value in values.values() if value.dim()]
    masters = _bytes(chain.from_iterable(group["params"] for group in optimizer.param_groups))
    return {
        "parameters": masters + ledger.highest["gathered"],
        "gradients": gradients,
        "optimizer": _bytes(state),
        "activations": ledger.highest["activations"],
    }


def record_gathers(prefetch: int) -> list[str]:
    """The parts gathered and the layers computed in a micro-batch, in the order of their beginning.

    All is computed again in the backward pass, so that every layer appears in both.
    """
    settings = ComputeSettings(device="cpu", threads=1, recompute="full", prefetch=prefetch)
    with join_world(settings) as world:
        model = initialize(build(CONFIG), seed=0)
        for index, layer in enumerate(model.model.layers):
            layer.forward = torch.profiler.record_function(f"compute {index}")(layer.forward)
        parallelize(model, world, settings)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
            _forward_backward(model, settings, last=True)
    # The fourth argument of the operation: whether it returns before it is done.
    assert all(event.concrete_inputs[3] for event in profile.events() if event.name == "c10d::_allgather_base_")
    events = sorted(profile.events(), key=lambda event: event.time_range.start)
    gather = re.compile(r"FSDP::all_gather(?: \(.*\.(\d+)\))?")
    matches = ((event.name, gather.fullmatch(event.name)) for event in events)
    return [f"gather {match[1] or 'rest'}" if match else name for name, match in matches if match or "compute" in name]


def count_collectives(cases: list[ComputeSettings], micro_batches: int) -> list[dict[str, int]]:
    """The collectives of one step by kind, for each of the settings."""
    kinds = {"gathers": "_allgather_base_", "reductions": "_reduce_scatter_base_", "sums": "allreduce_"}
    counts = []
    with one_world():
        for settings in cases:
            with join_world(settings) as world:
                model = parallelize(initialize(build(CONFIG), seed=0), world, settings)
                with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                    for micro_batch in range(micro_batches):
                        _forward_backward(model, settings, last=micro_batch == micro_batches - 1)
            seen = Counter(event.name for event in profile.events())
            counts.append({kind: seen[f"c10d::{name}"] for kind, name in kinds.items()})
    return counts


def _forward_backward(model: Yalm, settings: ComputeSettings, last: bool) -> None:
    plan_communication(model, settings, last)
    model(IDS, IDS.roll(-1, 1)).backward()


def _bytes(tensors: Any) -> int:
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in local}
    return sum(storages.values())

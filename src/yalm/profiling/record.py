"""Record some steps of a training run: the run itself, watched.

`yalm.training.loop.train` runs as it always does, in a folder of its own, and a `Recorder` looks on: some steps to warm
up, some timed as they are, then as many under torch.profiler, and the run ends. So what is profiled is what will run,
with its precision, sharding, data and all. Phases and modules are `record_function` scopes in the trace; each module's
is opened and closed by hooks, which compiled layers get from outside, as a whole.

The price: torch.profiler slows small operations down. Shares are those of the profiled steps, seconds of a step those
of the steps before.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from yalm.errors import YalmError
from yalm.model.config import ModelConfig
from yalm.model.network import Yalm
from yalm.training.engine import Engine, NativeEngine
from yalm.training.loop import train
from yalm.training.parallel import World
from yalm.training.settings import TrainSettings

PROFILE_FOLDER = "profile"
MODULE_SCOPE, GRADIENT_SCOPE = "module ", "gradient "
# Steps before the timed ones: the first makes the optimizer's state, compiles what is compiled and fills caches.
WARM_STEPS = 2


class Recorded(Exception):
    """All steps are recorded; ends the run, of which nothing is to be saved."""


@dataclass(frozen=True)
class Recording:
    """What was seen on this rank."""

    settings: TrainSettings
    config: ModelConfig
    device: torch.device
    ranks: int
    steps: int
    seconds: float
    """Of a step, without the profiler."""
    profiler: profile
    state_bytes: dict[str, int]
    """`parameters`, `gradients` and `optimizer` that this rank holds from step to step."""


def record(settings: TrainSettings, steps: int) -> Recording | None:
    """Record `steps` steps of a run of these settings in OUTPUT/profile; None on all ranks but the main one.

    Raises YalmError as `train` does, and when a signal ends the run.
    """
    total = WARM_STEPS + 2 * steps + 1
    changes = {
        "output": settings.output / PROFILE_FOLDER,
        "schedule": settings.schedule.model_copy(update={"tokens": total * settings.tokens_per_step}),
        "checkpoint": settings.checkpoint.model_copy(update={"every_steps": total + 1}),
        "metrics": settings.metrics.model_copy(update={"every_steps": total + 1, "tensorboard": False}),
        "validation": settings.validation.model_copy(update={"every_steps": total + 1}),
    }
    recorder = Recorder(steps)
    try:
        train(settings.model_copy(update=changes), fresh=True, watcher=recorder)
    except Recorded:
        return recorder.recording(settings) if recorder.world.is_main else None
    raise YalmError(f"{settings.output}: stopped before all steps were recorded; run yalm profile again")


@dataclass
class Recorder:
    """Watches a run (`yalm.training.loop.Watcher`), and ends it with `Recorded`."""

    steps: int
    done: int = 0
    seconds: float = 0.0
    gradient_bytes: int = 0
    model: Yalm = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    world: World = field(init=False)

    def begin(self, engine: Engine, world: World) -> None:
        """Take note of what is to be watched."""
        if not isinstance(engine, NativeEngine):
            raise YalmError("compute.engine deepspeed cannot be profiled; take native")
        self.model, self.optimizer, self.world = engine.model, engine.optimizer, world
        self.optimizer.register_step_pre_hook(self._measure_gradients)
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (world.device.type == "cuda")
        # The profiler needs a step to warm up as well.
        stages = schedule(wait=0, warmup=1, active=self.steps, repeat=1)
        self.profiler = profile(activities=activities, schedule=stages, record_shapes=True, profile_memory=True)

    def step(self) -> None:
        """Go from one stage to the next when its steps are done."""
        self.done += 1
        timed = self.done - WARM_STEPS
        if timed == 0:
            self.start = time.perf_counter()
        elif timed == self.steps:
            self.seconds = (time.perf_counter() - self.start) / self.steps
            if self.world.is_main:
                scope_modules(self.model)
                scope_gradients(self.model)
                self.profiler.start()
        elif timed > self.steps:
            if self.world.is_main:
                self.profiler.step()
            if timed == 2 * self.steps + 1:
                raise Recorded

    def recording(self, settings: TrainSettings) -> Recording:
        """What was seen."""
        state = [value for values in self.optimizer.state.values() for value in values.values()]
        return Recording(
            settings,
            self.model.config,
            self.world.device,
            self.world.size,
            self.steps,
            self.seconds,
            self.profiler,
            {
                "parameters": self._held(self.model.parameters()),
                "gradients": self.gradient_bytes,
                "optimizer": self._held(value for value in state if isinstance(value, torch.Tensor)),
            },
        )

    def _measure_gradients(self, *_: Any) -> None:
        gradients = (parameter.grad for parameter in self.model.parameters())
        self.gradient_bytes = self._held(gradient for gradient in gradients if gradient is not None)

    def _held(self, tensors: Iterable[torch.Tensor]) -> int:
        """Bytes of this rank's parts of tensors that are on the device; offloaded ones are not."""
        parts = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors)
        return sum(part.nbytes for part in parts if part.device.type == self.world.device.type)


def scope_modules(model: Yalm) -> None:
    """Let every module of `model` open a scope of its name in the trace while it computes, in place.

    The network's own is that of the output, `lm_head`: all that it computes outside its body is the logits and their
    loss. A compiled module has one for all of its insides.
    """
    compiled: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in compiled):
            continue
        if module._compiled_call_impl is not None:
            compiled.append(name)
            module._compiled_call_impl = _scoped(MODULE_SCOPE + name, module._compiled_call_impl)
        else:
            _scope_calls(MODULE_SCOPE + (name or "lm_head"), module)


def _scoped(label: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def scoped(*arguments: Any, **options: Any) -> Any:
        with record_function(label):
            return call(*arguments, **options)

    return scoped


def _scope_calls(label: str, module: nn.Module) -> None:
    scopes: list[ExitStack] = []

    def enter(*_: Any) -> None:
        scopes.append(ExitStack())
        scopes[-1].enter_context(record_function(label))

    def leave(*_: Any) -> None:
        scopes.pop().close()

    module.register_forward_pre_hook(enter)
    # Recomputation ends a layer by an exception as soon as it has what it needs; the scope must end all the same.
    module.register_forward_hook(leave, always_call=True)


def scope_gradients(model: Yalm) -> None:
    """Mark in the trace when a gradient appears, with its bytes; shards' gradients do not say when they do."""

    def mark(parameter: torch.Tensor) -> None:
        with record_function(f"{GRADIENT_SCOPE}{parameter.nbytes}"):
            pass

    for parameter in model.parameters():
        if not isinstance(parameter, DTensor):
            parameter.register_post_accumulate_grad_hook(mark)  # type: ignore[no-untyped-call]


def allocations(recording: Recording) -> Iterator[tuple[float, int]]:
    """When memory of the device was taken (positive bytes) or given back, in microseconds of the trace."""
    results: Any = recording.profiler.profiler.kineto_results  # type: ignore[union-attr]
    for event in results.events():
        if event.name() == "[memory]" and (event.device_type().name == "CUDA") == (recording.device.type == "cuda"):
            yield (event.start_ns() - results.trace_start_ns()) / 1e3, event.nbytes()

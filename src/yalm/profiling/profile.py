"""`yalm profile` in one function: record a run's steps, measure the machine, and say what both mean.

The facts are one dict of plain values, the same that the table, the page and `--json` show. Everything is written to
OUTPUT/profile, beside a run that may be in OUTPUT and never into it.
"""

import os
from typing import Any

import psutil
import torch

from yalm.atomic import atomic_file, write_text
from yalm.errors import YalmError
from yalm.model.costs import training_flops
from yalm.profiling.advice import Profile, advise, more_sequences
from yalm.profiling.classify import read_timeline
from yalm.profiling.memory import MEMORY_KINDS, memory_use
from yalm.profiling.record import PROFILE_FOLDER, Recording, allocations, record
from yalm.profiling.report import page
from yalm.profiling.roofline import large_operations, measure, product_rate
from yalm.training.precision import HALF
from yalm.training.settings import TrainSettings

PAGE_FILE, TRACE_FILE = "profile.html", "trace.json.gz"


def profile(settings: TrainSettings, steps: int = 3) -> dict[str, Any] | None:
    """Profile `steps` steps of a run of these settings, write the page and the trace; the facts on the main rank.

    Raises YalmError as `yalm.training.loop.train` does, and without the packages that draw the page.
    """
    if steps < 1:
        raise YalmError(f"--steps {steps}: must be at least 1")
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise YalmError("the profile's page needs jinja2; run: pip install 'openyalm[report]'") from None
    recording = record(settings, steps)
    if recording is None:
        return None
    seen, found = look_at(recording)
    folder = settings.output / PROFILE_FOLDER
    with atomic_file(folder / TRACE_FILE) as temporary:
        # The exporter compresses what is named so.
        packed = temporary.with_name(f"{temporary.name}.gz")
        recording.profiler.export_chrome_trace(str(packed))
        packed.replace(temporary)
    facts = describe(seen, found)
    facts["files"] = {"page": str(folder / PAGE_FILE), "trace": str(folder / TRACE_FILE)}
    write_text(folder / PAGE_FILE, page(facts))
    return facts


def look_at(recording: Recording) -> tuple[Profile, dict[str, Any]]:
    """A recording and this machine's peaks as what rules look at, and the memory over time (`memory_use`)."""
    settings, config, device = recording.settings, recording.config, recording.device
    events = recording.profiler.events()  # type: ignore[no-untyped-call]
    memory = memory_use(events, allocations(recording), recording.state_bytes)
    dtype = HALF.get(settings.compute.precision, torch.float32)
    machine = measure(device, dtype)
    now, more = settings.batch.micro_sequences, more_sequences(settings, recording.ranks)[0]
    rates = [
        product_rate(
            device, dtype, sequences * settings.data.sequence_length, config.hidden_size, config.intermediate_size
        )
        for sequences in (now, more)
    ]
    seen = Profile(
        settings=settings,
        config=config,
        device=device,
        ranks=recording.ranks,
        seconds=recording.seconds,
        timeline=read_timeline(events, recording.steps),
        machine=machine,
        peak_bytes=max(sum(kinds.values()) for kinds in memory["phases"].values()),
        memory=memory_at_hand(device),
        product_rates=(rates[0], rates[1]),
        half_rate=measure(device, torch.bfloat16).flops if device.type == "cuda" else machine.flops,
    )
    return seen, memory


def memory_at_hand(device: torch.device) -> float:
    """Bytes that one process may take: a GPU's memory, or a rank's share of what is free here."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(psutil.virtual_memory().available) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def describe(seen: Profile, memory: dict[str, Any]) -> dict[str, Any]:
    """The facts as plain values: seconds of a profiled step, bytes, shares from 0 to 1; what to do under `advice`."""
    settings, timeline, machine = seen.settings, seen.timeline, seen.machine
    rate = settings.tokens_per_step / seen.seconds
    flops = training_flops(seen.config, settings.data.sequence_length)
    between = max(0.0, timeline.seconds - sum(timeline.phases.values()))
    return {
        "run": str(settings.output),
        "device": str(seen.device),
        "ranks": seen.ranks,
        "precision": settings.compute.precision,
        "config": seen.config.model_dump(),
        "tokens_per_step": settings.tokens_per_step,
        "step_seconds": seen.seconds,
        "tokens_per_second": rate,
        "mfu": rate * flops / (machine.flops * seen.ranks),
        "machine": {"flops": machine.flops, "bandwidth": machine.bandwidth, "memory": seen.memory},
        "profiled_steps": timeline.steps,
        "profiled_seconds": timeline.seconds,
        "phases": timeline.phases | {"between": between},
        "kinds": timeline.kinds,
        "communication": {"exposed": timeline.exposed, "hidden": timeline.hidden},
        "modules": {name or "elsewhere": seconds for name, seconds in timeline.modules.items()},
        "memory_kinds": MEMORY_KINDS,
        "memory": memory["phases"],
        "memory_series": memory["series"],
        "operations": large_operations(timeline, machine),
        "advice": [
            {
                "rule": advice.rule,
                "change": list(advice.change),
                "why": advice.why,
                "gain": advice.gain,
                "speedup": 1 / (1 - min(advice.gain, 0.99)),
                "same_result": advice.same_result,
            }
            for advice in advise(seen)
        ],
    }

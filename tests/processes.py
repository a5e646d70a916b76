"""Processes of their own for what is killed, or takes part as a rank: forked, so that nothing is imported again."""

import itertools
import multiprocessing
import os
import pkgutil
import signal
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from typing import Any

import torch

# What each would import by itself, for seconds of its processor: ours, and what an optimizer's first call and the first
# save load. No module of the tests: the server that forks does not know their folder.
PRELOADED = ["yalm.inference.language_model", "yalm.training.loop", "torch._dynamo", "fsspec.core"]


def context() -> ForkServerContext:
    """Where processes come from."""
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(PRELOADED)
    return forkserver


def is_killed(place: str, number: int, work: Callable[..., Any], *arguments: Any, **options: Any) -> bool:
    """Run `work` in another process until, as by `kill -9`, the n-th call of a function ends it.

    `place` names that function as `package.module:Class.function`. False if the work was done before.
    """
    process = context().Process(target=_run_and_die, args=(place, number, work, arguments, options))
    process.start()
    process.join(120)
    code = process.exitcode
    process.kill()
    assert code in (0, -signal.SIGKILL), f"exit code {code}"
    return code != 0


def _run_and_die(
    place: str, number: int, work: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    torch.set_num_threads(1)
    owner_name, _, name = place.replace(":", ".").rpartition(".")
    owner, calls = pkgutil.resolve_name(owner_name), itertools.count(1)
    function = getattr(owner, name)

    def kill(*arguments: Any, **options: Any) -> Any:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    setattr(owner, name, kill)
    work(*arguments, **options)

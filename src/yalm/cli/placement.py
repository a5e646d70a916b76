"""Several processes for one model, and the plan that `yalm generate --plan` shows."""

import os
import re
from typing import Any

from yalm.errors import YalmError


def parse_devices(text: str | None) -> tuple[int, int]:
    """Tensor-parallel and pipeline ranks of "4" (all tensor) or "tensor=2,pipeline=2".

    Without a text, those of the processes that torchrun started: tensor parallel on a machine, a pipeline over several.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if text is None:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        return local, world // local
    if re.fullmatch(r"\d+", text):
        return int(text), 1
    ranks = {"tensor": 1, "pipeline": 1}
    for item in text.split(","):
        name, _, number = item.partition("=")
        if name not in ranks or not re.fullmatch(r"[1-9]\d*", number):
            raise YalmError(f"--devices {text}: write it as 4, or as tensor=2,pipeline=2")
        ranks[name] = int(number)
    return ranks["tensor"], ranks["pipeline"]


def launch(count: int) -> None:
    """Run this very command in `count` processes on this machine, unless it is one of several already; then exit.

    The first process to fail ends the others, and its exit code is that of the command.
    """
    import socket
    import subprocess
    import sys
    import time

    if count == 1 or "WORLD_SIZE" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = max(1, (os.cpu_count() or 1) // count)
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    command = [sys.executable, "-m", "yalm", *sys.argv[1:]]
    processes = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]
    try:
        while True:
            codes = [process.poll() for process in processes]
            failed = next((code for code in codes if code), None)
            if failed is not None or None not in codes:
                break
            time.sleep(0.05)
    except KeyboardInterrupt:  # the processes have heard it too
        failed = 130
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
    sys.exit(failed or 0)


def show_plan(model: str, facts: "dict[str, Any]") -> None:
    """What `forecast` found, as tables."""
    from yalm.cli.output import print_table
    from yalm.inference.placement import human

    ranks = (
        f", tensor {facts['tensor']} x pipeline {facts['pipeline']}" if facts["tensor"] * facts["pipeline"] > 1 else ""
    )
    layers, sizes, each = facts["layers"], facts["bytes"], facts["layer_seconds"]
    way = "past the system's cache" if facts["past_the_cache"] else "through the system's cache"
    print_table(
        f"{model} in {facts['dtype']}{ranks}: where the layers lie",
        ("place", "layers", "size", "seconds to bring one"),
        (
            ("with the device", str(layers["device"]), human(layers["device"] * sizes["layer"]), ""),
            ("in host memory", str(layers["host"]), human(layers["host"] * sizes["layer"]), f"{each['host']:.3g}"),
            (
                f"on disk, {way}" if layers["disk"] else "on disk",
                str(layers["disk"]),
                human(layers["disk"] * sizes["layer"]),
                f"{each['disk']:.3g}",
            ),
        ),
    )
    names = {"table_and_output": "token table, output", "buffers": "two buffers for layers", "cache": "keys and values"}
    names |= {"activations": "activations", "device": "at most, with the layers"}
    print_table("Memory of the device", ("for", "size"), ((text, human(sizes[name])) for name, text in names.items()))
    seconds = facts["seconds"]
    print_table(
        f"Expected seconds, {facts['texts']} texts at a time",
        ("part", "seconds"),
        (
            ("computing", f"{seconds['compute']:.3g}"),
            (
                "reading, meanwhile" if facts["reading_hidden"] else "reading, by the same cores",
                f"{seconds['read']:.3g}",
            ),
            ("a token of every text", f"{seconds['sweep']:.3g}"),
            ("a token", f"{seconds['per_token']:.3g}"),
        ),
    )

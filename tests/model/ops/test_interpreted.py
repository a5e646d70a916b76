"""Our Triton kernels through its interpreter; what is asserted of them is in `kernels.py`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.parametrize("examples", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_kernels_are_their_references(examples: int) -> None:
    # Triton decides at its import whether it interprets, and this process may have imported it already.
    command = [sys.executable, "-m", "pytest", "-n", "0", str(Path(__file__).with_name("kernels.py"))]
    chosen = {"TRITON_INTERPRET": "1", "KERNEL_EXAMPLES": str(examples)}
    done = subprocess.run(command, env=os.environ | chosen, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

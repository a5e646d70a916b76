"""Our Triton kernels through its interpreter; what is asserted of them is in `kernels.py`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_kernels_are_their_references() -> None:
    # Triton decides at its import whether it interprets, and this process may have imported it already.
    command = [sys.executable, "-m", "pytest", "-n", "0", str(Path(__file__).with_name("kernels.py"))]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

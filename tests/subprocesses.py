"""Python in a process of its own, with this package; it takes seconds to start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", 2)
IN_TWO_PROCESSES = (*TORCHRUN, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m")
"""Before a module's name: two processes of one group, on gloo."""


def run_python(
    *arguments: object, cwd: Path = ROOT, timeout: float = 300, **variables: str
) -> subprocess.CompletedProcess[str]:
    """What `python` gives with these arguments, on one thread.

    Args:
        variables: of its environment, beside those of this process.
    """
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | own,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )

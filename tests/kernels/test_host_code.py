"""What is compiled for the CPU is kept for the next process, and only as long as it is right."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import cacheshrink_hybrid
from tests.subprocesses import run_python

pytest.importorskip("numba")
PACKAGE = Path(cacheshrink_hybrid.__file__).parent
CALL = """
import numpy as np
from cacheshrink_hybrid.kernels.probe import twice
found = twice(np.ones(3, np.float32))[0]
print(dict(twice.stats.cache_hits), found)
"""
PROBE = """
from .host_code import kept
from .probe_factor import scaled

@kept
def twice(x):
    return scaled(x)
"""
FACTOR = """
from .host_code import compiled

@compiled
def scaled(x):
    return x * FACTOR
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package with host code, and functions of two files."""
    root = tmp_path / "cacheshrink_hybrid"
    (root / "kernels").mkdir(parents=True)
    (root / "codecs").mkdir()
    (root / "__init__.py").touch()
    (root / "kernels/__init__.py").touch()
    shutil.copy(PACKAGE / "kernels/host_code.py", root / "kernels/host_code.py")
    (root / "kernels/probe.py").write_text(PROBE)
    (root / "kernels/probe_factor.py").write_text(FACTOR.replace("FACTOR", "2"))
    return root


def _run(package: Path, **variables: str) -> str:
    done = run_python("-c", CALL, cwd=package.parent, PYTHONPATH=str(package.parent), **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow(group="host code")
def test_the_next_process_finds_what_was_compiled(package: Path) -> None:
    """Beside the source; and compiles anew where another file that it calls has changed."""
    assert _run(package) == "{} 2.0\n"
    assert list((package / "kernels/__pycache__").glob("probe.twice*.nbc"))
    assert _run(package).endswith(": 1} 2.0\n")
    (package / "kernels/probe_factor.py").write_text(FACTOR.replace("FACTOR", "3"))
    assert _run(package) == "{} 3.0\n"


@pytest.mark.slow(group="host code")
def test_read_only_installations(package: Path, tmp_path: Path) -> None:
    """What was compiled lies where the user keeps such things; or nowhere."""
    kernels = package / "kernels"
    (kernels / "__pycache__").write_text("no folder, as nothing can be written there")
    home = tmp_path / "home"
    assert _run(package, XDG_CACHE_HOME=str(home)) == "{} 2.0\n"
    assert list(home.rglob("probe.twice*.nbc"))
    assert _run(package, XDG_CACHE_HOME=str(home)).endswith(": 1} 2.0\n")
    assert _run(package, XDG_CACHE_HOME="/proc/nowhere") == "{} 2.0\n"

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


def _run(package: Path, call: str = CALL, **variables: str) -> str:
    # Python takes its own compiled files for right as long as their sources have the same second
    # and size, which those of a quick machine have.
    variables = {"PYTHONDONTWRITEBYTECODE": "1", **variables}
    done = run_python("-c", call, cwd=package.parent, PYTHONPATH=str(package.parent), **variables)
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


def _names(package: Path) -> set[str]:
    return {path.name for path in (package / "kernels/__pycache__").glob("probe.twice*.nb?")}


@pytest.mark.slow(group="host code")
def test_files_are_of_one_state_of_the_sources(package: Path) -> None:
    """So that no process reads what another one has written meanwhile for other sources; those of
    former ones go."""
    found = []
    for factor in ("2", "3", "2"):
        (package / "kernels/probe_factor.py").write_text(FACTOR.replace("FACTOR", factor))
        assert _run(package) == f"{{}} {factor}.0\n"
        found.append(_names(package))
    assert len(found[0]) == 1 and found[0] == found[2] and not found[0] & found[1]


@pytest.mark.slow(group="host code")
def test_files_are_of_one_signature(package: Path) -> None:
    """What lies under the name of another one is not taken."""
    double = CALL.replace("np.float32", "np.float64")
    assert _run(package) == _run(package, call=double) == "{} 2.0\n"
    one, other = sorted((package / "kernels/__pycache__").glob("probe.twice*.nbc"))
    for call in (CALL, double):
        assert _run(package, call=call).endswith(": 1} 2.0\n")
    shutil.copy(one, other)
    found = sorted(_run(package, call=call) for call in (CALL, double))
    assert found[1] == "{} 2.0\n" and found[0].endswith(": 1} 2.0\n")


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

"""Importing the package does no work and brings in nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cacheshrink_hybrid

HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "triton",
    "geoopt",
    "datasets",
    "matplotlib",
    "accelerate",
)
ROOT = Path(cacheshrink_hybrid.__file__).parents[1]


def test_import_is_lean() -> None:
    program = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import cacheshrink_hybrid\n"
        f"print([name for name in {HEAVY} if name in set(sys.modules) - before])\n"
        "print(cacheshrink_hybrid.__version__)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stdout.split("\n")[:2] == ["[]", cacheshrink_hybrid.__version__]
    assert result.stderr == ""


@pytest.mark.parametrize("name", cacheshrink_hybrid.__all__)
def test_public_name(name: str) -> None:
    assert getattr(cacheshrink_hybrid, name) is not None
    assert name in dir(cacheshrink_hybrid)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'novelty'"):
        _ = cacheshrink_hybrid.novelty

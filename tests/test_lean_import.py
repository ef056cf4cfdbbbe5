"""Importing the package does no work and brings in nothing heavy."""

from __future__ import annotations

import pytest

import cacheshrink_hybrid
from tests.subprocesses import run_python

HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "triton",
    "geoopt",
    "datasets",
    "matplotlib",
    "accelerate",
    "numba",
    "fastapi",
    "pydantic",
    "llguidance",
)


def test_import_is_lean() -> None:
    program = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import cacheshrink_hybrid\n"
        f"print([name for name in {HEAVY} if name in set(sys.modules) - before])\n"
        "print(cacheshrink_hybrid.__version__)\n"
    )
    result = run_python("-c", program)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[:2] == ["[]", cacheshrink_hybrid.__version__]
    assert result.stderr == ""


@pytest.mark.slow
def test_the_engine_needs_nothing_of_the_server() -> None:
    program = (
        "import sys\n"
        "for name in ('fastapi', 'uvicorn', 'starlette', 'llguidance'):\n"
        "    sys.modules[name] = None\n"
        "from cacheshrink_hybrid.engine import AsyncLLM, LLM\n"
        "import cacheshrink_hybrid.cli.parsers.serve\n"
    )
    result = run_python("-c", program)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", cacheshrink_hybrid.__all__)
def test_public_name(name: str) -> None:
    assert getattr(cacheshrink_hybrid, name) is not None
    assert name in dir(cacheshrink_hybrid)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'novelty'"):
        _ = cacheshrink_hybrid.novelty

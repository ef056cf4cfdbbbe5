"""The transformers under test is the one that was meant, and pyproject.toml admits no later one."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
import transformers
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def admitted() -> Requirement:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [Requirement(line) for line in project["dependencies"]]
    return next(requirement for requirement in named if requirement.name == "transformers")


def pinned() -> Version:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return Version(next(line for line in lines if line.startswith("transformers==")).split("==")[1])


def test_this_release_is_admitted() -> None:
    assert admitted().specifier.contains(transformers.__version__)


def test_no_release_after_the_pinned_one_is_admitted() -> None:
    """Until the suite has run on it: a release may rename what the replaced modules are given."""
    newest = pinned()
    assert admitted().specifier.contains(newest)
    assert not admitted().specifier.contains(Version(f"{newest.major}.{newest.minor + 1}.0"))


@pytest.mark.skipif("EXPECTED_TRANSFORMERS" not in os.environ, reason="set by scripts/test.sh")
def test_the_oldest_release_is_the_one_that_runs() -> None:
    asked = os.environ["EXPECTED_TRANSFORMERS"]
    assert Version(transformers.__version__) == Version(asked)
    bounds = {str(part) for part in admitted().specifier}
    assert f">={asked}" in bounds

"""Docstrings refer to what is there."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.build_docs import broken_references, module_names


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Broken references of a module of `pool` with a given docstring."""

    def of_module(docstring: str) -> list[str]:
        path = tmp_path / "example.py"
        path.write_text(f'"""{docstring}"""\n\n\ndef act(plan):\n    """Reads `plan.nothing`."""\n')
        spec = importlib.util.spec_from_file_location("cacheshrink_hybrid.pool.example", path)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        return list(broken_references(module))

    return of_module


@pytest.mark.parametrize(
    "name",
    [
        "pool.layout.Layout",  # from the top
        "layout.Layout",  # from the package that the module lies in
        "cacheshrink_hybrid.pool.layout",
        "pool/layout.py",
        "config.json",
        "torch.nn.Linear",
    ],
)
def test_what_is_there_or_not_ours_is_passed(name: str, broken) -> None:
    assert not broken(f"As `{name}` has it.")


@pytest.mark.parametrize("name", ["pool.layout.Nothing", "layout.Nothing", "pool.nothing.Layout"])
def test_what_is_gone_is_named(name: str, broken) -> None:
    (fault,) = broken(f"As `{name}` has it.")
    assert f"`{name}` is not there" in fault


@pytest.mark.slow
def test_no_reference_is_broken() -> None:
    modules = map(importlib.import_module, module_names())
    assert not [fault for module in modules for fault in broken_references(module)]

"""Imports of the package point down, and the two memories do not know each other."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import cacheshrink_hybrid

PACKAGE = Path(cacheshrink_hybrid.__file__).parent

LAYERS = """
    errors version lazy lasting integers byte_counts writing precision placement text_tables
    codecs
    spec config linalg ranks device_profile cache_argument derived_class
    headwise_linear linear_map
    kernels
    pool
    latents | states
    plan
    caches | families
    demo
    model checkpoint auto
    calibration
    conversion
    evaluation
    engine | training
    cli __main__
"""
"""From the ground up: a part may import parts of its own line and of lines above it here, but none
from the other side of a bar."""


def _places() -> dict[str, tuple[int, int]]:
    """Line and side of every part."""
    lines = [line.split("|") for line in LAYERS.split("\n") if line.strip()]
    return {
        part: (line, side)
        for line, sides in enumerate(lines)
        for side, parts in enumerate(sides)
        for part in parts.split()
    }


def _imported(source: str, parents: tuple[str, ...]) -> set[str]:
    """Parts of the package that a module of it imports, anywhere in it, for its types as well.

    Args:
        parents: folders that the module lies in, below the package.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            if not node.level and (node.module or "").startswith("cacheshrink_hybrid."):
                found.add(str(node.module).split(".")[1])
            if node.level:
                above = parents[: len(parents) - node.level + 1]
                named = (*above, *(node.module or "").split("."))
                found |= {named[0]} if named[0] else {alias.name for alias in node.names}
    return found


def _upward(part: str, imported: set[str]) -> set[str]:
    """Which of these imports a part must not have."""
    places = _places()
    line, side = places[part]
    return {
        other
        for other in imported - {part}
        if places[other][0] > line or (places[other][0] == line and places[other][1] != side)
    }


def test_imports_point_down() -> None:
    for path in PACKAGE.rglob("*.py"):
        *parents, name = path.relative_to(PACKAGE).with_suffix("").parts
        if (name, parents) == ("__init__", []):
            continue  # the front door shows everything
        imported = _imported(path.read_text(encoding="utf-8"), tuple(parents))
        assert not _upward([*parents, name][0], imported), path


def test_the_pool_knows_no_transformers() -> None:
    for folder in ("pool", "kernels", "codecs"):
        for path in (PACKAGE / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in getattr(node, "names", ()) if node is not None]
                module = getattr(node, "module", None) or ""
                assert not any(name.startswith("transformers") for name in [module, *names]), path


def _imported_files(path: Path) -> set[Path]:
    """Files that a module imports from beside it, below or above, anywhere in it, for its types as
    well."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            place = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for name in (alias.name for alias in node.names):
                files = (place / f"{name}.py", place.with_suffix(".py"), place / "__init__.py")
                found |= {next(file for file in files if file.is_file())}
    return found


def _circle(folder: Path) -> list[str]:
    """Names of files below a folder that import each other in a circle, if there is one."""
    files = set(folder.rglob("*.py"))
    try:
        TopologicalSorter({file: _imported_files(file) & files for file in files}).prepare()
    except CycleError as error:
        return [str(file.relative_to(folder)) for file in error.args[1]]
    return []


@pytest.mark.parametrize("folder", ["latents"])
def test_no_files_import_each_other_in_a_circle(folder: str) -> None:
    assert not _circle(PACKAGE / folder)


def test_circles_are_found(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name, source in {
        "__init__": "",
        "a": "from .below.b import x",
        "below/__init__": "",
        "below/b": "from . import c",
        "below/c": "import os",
    }.items():
        (tmp_path / f"{name}.py").write_text(source)
    assert not _circle(tmp_path)
    types = "if TYPE_CHECKING:\n    from ..a import y"
    (tmp_path / "below/c.py").write_text(types)
    assert set(_circle(tmp_path)) == {"a.py", "below/b.py", "below/c.py"}


def test_what_must_not_be_is_found() -> None:
    states = "from ...states.plan import StatePlan"
    assert _upward("latents", _imported(states, ("latents", "fit"))) == {"states"}
    assert _upward("states", _imported("from ..latents import plan", ("states",))) == {"latents"}
    lazily = "def f():\n    from .. import latents, errors"
    assert _upward("pool", _imported(lazily, ("pool",))) == {"latents"}
    assert not _upward("pool", _imported("from .layout import Layout", ("pool",)))
    assert not _upward("caches", _imported("from ..states.layer import x", ("caches",)))

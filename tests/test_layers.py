"""Imports of the package point down, the two memories do not know each other, and files that import
each other in a circle are found."""

from __future__ import annotations

import ast
from pathlib import Path

import cacheshrink_hybrid

PACKAGE = Path(cacheshrink_hybrid.__file__).parent

LAYERS = """
    errors version lazy lasting integers byte_counts writing precision placement text_tables
    codecs
    methods spec config config_faults linalg ranks device_profile cache_argument derived_class
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

STRAIGHT = ("config", "conversion", "families", "latents/fit", "methods", "plan", "states")
"""Folders and modules none of whose files is in a circle of imports."""


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


def test_what_must_not_be_is_found() -> None:
    states = "from ...states.plan import StatePlan"
    assert _upward("latents", _imported(states, ("latents", "fit"))) == {"states"}
    assert _upward("states", _imported("from ..latents import plan", ("states",))) == {"latents"}
    lazily = "def f():\n    from .. import latents, errors"
    assert _upward("pool", _imported(lazily, ("pool",))) == {"latents"}
    assert not _upward("pool", _imported("from .layout import Layout", ("pool",)))
    assert not _upward("caches", _imported("from ..states.layer import x", ("caches",)))


def _modules(package: Path) -> dict[tuple[str, ...], Path]:
    """Every file of a package by its path below it; an `__init__` by that of its folder."""
    names = {}
    for path in package.rglob("*.py"):
        *parents, name = path.relative_to(package).with_suffix("").parts
        names[(*parents, name) if name != "__init__" else (*parents,)] = path
    return names


def _imported_files(package: Path, modules: dict[tuple[str, ...], Path], path: Path) -> set[Path]:
    """Files of the package that one of them imports, anywhere in it, for its types as well."""
    parents = path.relative_to(package).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        named = tuple((node.module or "").split(".")) if node.module else ()
        if node.level:
            named = (*parents[: len(parents) - node.level + 1], *named)
        elif named[:1] == (package.name,):
            named = named[1:]
        else:
            continue
        for alias in node.names:  # a module of the folder, or a name in it
            found |= {modules.get((*named, alias.name)) or modules.get(named)}
    return {other for other in found if other is not None and other != path}


def _circles(package: Path) -> list[set[Path]]:
    """Sets of files each of which imports every other, by way of others."""
    modules = _modules(package)
    del modules[()]  # the front door shows everything
    reached = {path: _imported_files(package, modules, path) for path in modules.values()}
    for through, beyond in reached.items():  # Warshall's closure
        for found in reached.values():
            if through in found:
                found.update(beyond)
    circles = []
    for path, found in reached.items():
        if path in found and not any(path in circle for circle in circles):
            circles.append({other for other in found if path in reached[other]})
    return circles


def test_no_file_is_in_a_circle() -> None:
    for circle in _circles(PACKAGE):
        names = {str(path.relative_to(PACKAGE).with_suffix("")) for path in circle}
        caught = {name for name in names for straight in STRAIGHT if name.startswith(straight)}
        assert not caught, sorted(names)


def test_circles_are_found(tmp_path: Path) -> None:
    """By way of a folder, for types alone, and lazily."""
    files = {
        "__init__": "from .a import x",
        "a": "from .inner import deep",
        "inner/__init__": "",
        "inner/deep": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .. import b",
        "b": "def f():\n    from house.a import x",
        "c": "from . import a\nfrom .inner.deep import y",
    }
    package = tmp_path / "house"
    (package / "inner").mkdir(parents=True)
    for name, text in files.items():
        (package / f"{name}.py").write_text(text, encoding="utf-8")
    (circle,) = _circles(package)
    assert {path.stem for path in circle} == {"a", "b", "deep"}

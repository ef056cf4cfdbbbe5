"""Imports of the package point down, the two memories do not know each other, and files that import
each other in a circle are found."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import cacheshrink_hybrid

PACKAGE = Path(cacheshrink_hybrid.__file__).parent

LAYERS = """
    errors version certificate lazy lasting integers byte_counts writing precision placement
    text_tables chat_template end_tokens text_ids next_token paired_text
    freed_memory
    codecs
    methods spec config config_faults linalg ranks device_profile cache_argument derived_class
    headwise_linear linear_map
    kernels
    pool
    latents | states
    plan
    families
    caches
    demo
    model
    checkpoint
    export
    auto registration
    calibration
    conversion
    evaluation
    engine | training | vllm
    serving
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


def _named(source: str, parents: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """What a module imports of the package, anywhere in it, for its types as well, as paths below
    the package: modules, or names in them.

    Args:
        parents: folders that the module lies in, below the package.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            paths = [tuple(alias.name.split(".")) for alias in node.names]
            yield from (path[1:] for path in paths if path[0] == PACKAGE.name and path[1:])
        elif isinstance(node, ast.ImportFrom):
            path = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                path = (*parents[: len(parents) - node.level + 1], *path)
            elif path[:1] == (PACKAGE.name,):
                path = path[1:]
            else:
                continue
            yield from ((*path, alias.name) for alias in node.names)


def _imported(source: str, parents: tuple[str, ...]) -> set[str]:
    """Parts of the package that a module of it imports."""
    return {path[0] for path in _named(source, parents)}


def _upward(part: str, imported: set[str]) -> set[str]:
    """Which of these imports a part must not have."""
    places = _places()
    line, side = places[part]
    return {
        other
        for other in imported - {part}
        if places[other][0] > line or (places[other][0] == line and places[other][1] != side)
    }


def _imported_files(path: Path, source: str) -> set[Path]:
    """Files that the file at `path` takes names from."""
    found = set()
    for *folders, name in _named(source, path.relative_to(PACKAGE).parts[:-1]):
        base = PACKAGE.joinpath(*folders)
        places = (base / f"{name}.py", base.with_suffix(".py"), base / "__init__.py")
        found |= set([place for place in places if place.is_file()][:1])
    return found


def test_imports_point_down() -> None:
    for path in PACKAGE.rglob("*.py"):
        *parents, name = path.relative_to(PACKAGE).with_suffix("").parts
        if (name, parents) == ("__init__", []):
            continue  # the front door shows everything
        imported = _imported(path.read_text(encoding="utf-8"), tuple(parents))
        assert not _upward([*parents, name][0], imported), path


def test_no_files_import_each_other_in_a_circle() -> None:
    imports = {
        path: _imported_files(path, path.read_text(encoding="utf-8"))
        for path in PACKAGE.rglob("*.py")
    }
    TopologicalSorter(imports).prepare()  # raises


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
    for absolute in (
        "import cacheshrink_hybrid.states.plan",
        "import torch, cacheshrink_hybrid.states.plan as plan",
        "from cacheshrink_hybrid import states",
        "from cacheshrink_hybrid.states.plan import StatePlan",
    ):
        assert _upward("latents", _imported(absolute, ("latents", "fit"))) == {"states"}
    lazily = "def f():\n    from .. import latents, errors"
    assert _upward("pool", _imported(lazily, ("pool",))) == {"latents"}
    assert not _upward("pool", _imported("from .layout import Layout", ("pool",)))
    assert not _upward("caches", _imported("from ..states.layer import x", ("caches",)))


@pytest.mark.parametrize(
    "typed",
    [
        "if TYPE_CHECKING:\n    from ..model.latent_model import LatentModel",
        "from cacheshrink_hybrid.model.latent_model import LatentModel",
        "import cacheshrink_hybrid.model.latent_model",
    ],
)
def test_a_circle_is_found(typed: str) -> None:
    upper, lower = PACKAGE / "checkpoint" / "save.py", PACKAGE / "model" / "latent_model.py"
    lazy = "def f():\n    from ..checkpoint import save"
    imports = {upper: _imported_files(upper, typed), lower: _imported_files(lower, lazy)}
    with pytest.raises(CycleError, match=r"save\.py.*latent_model\.py"):
        TopologicalSorter(imports).prepare()

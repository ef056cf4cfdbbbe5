"""No function of the package or its programs takes more than a reader can hold at once."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import cacheshrink_hybrid

PACKAGE = Path(cacheshrink_hybrid.__file__).parent
ROOT = Path(__file__).parent.parent
PROGRAMS = ("eval", "scripts", "training")
MOST = 11
"""Parameters, without the object itself. When there are more, a noun is missing."""
LAUNCHED = "kernels"
"""Kernels take every address and stride by itself."""


def _long(source: str) -> Iterator[tuple[str, int]]:
    """Name and number of parameters of every function that takes more than it may."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            named = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            count = len([name for name in named if name not in ("self", "cls")])
            count += (given.vararg is not None) + (given.kwarg is not None)
            if count > MOST:
                yield node.name, count


def test_functions_take_few_parameters() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] != LAUNCHED:
            assert not list(_long(path.read_text(encoding="utf-8"))), path
    for path in (path for folder in PROGRAMS for path in (ROOT / folder).rglob("*.py")):
        assert not list(_long(path.read_text(encoding="utf-8"))), path


def test_one_too_many_is_found() -> None:
    names = [f"x{i}" for i in range(MOST)]
    fine = f"def f({', '.join(names)}): ...\nclass C:\n    def g(self, {', '.join(names)}): ..."
    assert not list(_long(fine))
    for more in ("x, ", "*x, ", "*, x, "):
        assert list(_long(f"def f({more}{', '.join(names)}): ...")) == [("f", MOST + 1)]
    assert list(_long(f"async def f({', '.join(names)}, **x): ...")) == [("f", MOST + 1)]

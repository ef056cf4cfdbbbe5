"""How device functions give constants on, which Triton before 3.8 takes in one form only.

Kernels compile with every Triton from 3.4 on; the newest, with which these tests run, would also
take what the others refuse.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import cacheshrink_hybrid.kernels

FOLDER = Path(cacheshrink_hybrid.kernels.__file__).parent


def _of_a_constant(node: ast.expr) -> bool:
    """Whether an expression takes something out of a constant, which has a name in capitals."""
    inner = node.value if isinstance(node, ast.Subscript | ast.Attribute) else None
    if isinstance(inner, ast.Name):
        return inner.id.isupper()
    return inner is not None and _of_a_constant(inner)


def _given_on_bare(source: str) -> Iterator[str]:
    """Elements of constant tuples that are arguments as they are, and numbers out of constants that
    stand in a list of sizes."""
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        if not any(ast.unparse(one) == "triton.jit" for one in function.decorator_list):
            continue
        for call in ast.walk(function):
            if not isinstance(call, ast.Call) or ast.unparse(call.func) in ("constant", "len"):
                continue
            for given in call.args:
                element = isinstance(given, ast.Subscript) and _of_a_constant(given)
                sizes = given.elts if isinstance(given, ast.List) else []
                if element or any(map(_of_a_constant, sizes)):
                    yield f"{function.name}: {ast.unparse(given)}"


def test_what_comes_out_of_a_constant_goes_on_as_a_constant() -> None:
    for path in FOLDER.rglob("*.py"):
        assert not list(_given_on_bare(path.read_text(encoding="utf-8"))), path


def test_what_is_given_on_bare_is_found() -> None:
    source = (
        "@triton.jit\n"
        "def f(p, PIECES: tl.constexpr):\n"
        "    read(p, {0}PIECES[0])\n"
        "    tl.zeros([16, {0}PIECES[0].width])\n"
    )
    assert list(_given_on_bare(source.format(""))) == ["f: PIECES[0]", "f: [16, PIECES[0].width]"]
    whole = source.replace("PIECES[0])", "PIECES[0]))").replace("width]", "width)]")
    assert not list(_given_on_bare(whole.format("constant(")))

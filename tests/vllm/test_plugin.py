"""The plugin is found by vLLM, and by nobody else."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import cacheshrink_hybrid
from cacheshrink_hybrid.families import FAMILIES
from cacheshrink_hybrid.families.vllm import VLLM_ARCHITECTURES

PACKAGE = Path(cacheshrink_hybrid.__file__).parent
FOLDER = PACKAGE / "vllm"
WITHOUT = {
    "__init__.py",
    "blocks.py",
    "memory_check.py",
    "own_heads.py",
    "paged_attention.py",
    "support.py",
}
"""Files of the folder that import no vLLM."""


def _imports(path: Path) -> list[ast.ImportFrom]:
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node for node in tree if isinstance(node, ast.ImportFrom)]


def test_few_files_import_vllm() -> None:
    found = {
        path
        for path in PACKAGE.rglob("*.py")
        if "import vllm" in path.read_text(encoding="utf-8")
        or any(n.level == 0 and str(n.module).split(".")[0] == "vllm" for n in _imports(path))
    }
    assert found == {path for path in FOLDER.glob("*.py") if path.name not in WITHOUT}


def test_nothing_else_imports_the_folder() -> None:
    for path in PACKAGE.rglob("*.py"):
        if FOLDER not in path.parents:
            for node in _imports(path):
                base = path.parents[node.level - 1] if node.level else Path("/")
                parts = str(node.module or "").split(".")
                named = [base.joinpath(*parts), *(base / alias.name for alias in node.names)]
                assert FOLDER not in named, path


def test_the_entry_point_is_there() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    (target,) = project["project"]["entry-points"]["vllm.general_plugins"].values()
    module, _, function = target.partition(":")
    path = PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")
    names = [n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)]
    assert function in names


def test_architectures_are_those_of_families() -> None:
    assert VLLM_ARCHITECTURES.keys() <= FAMILIES.keys()

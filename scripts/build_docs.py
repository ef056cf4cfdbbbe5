"""Build the API reference with pdoc, and check what docstrings refer to.

    python -m scripts.build_docs out/api

Every module of the package gets a page, and names that a package exports stand on its page.
Warnings of pdoc and broken references are errors: a dotted name in backticks whose first part is a
module or package of this one, seen from the docstring's module or from the top, must exist. Names
of arguments are left alone. Modules that need vLLM are left out where it is not installed.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import cacheshrink_hybrid

REFERENCE = re.compile(r"`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?:\(\))?`")
FILE_SUFFIXES = ("json", "md", "py", "sh", "txt", "safetensors", "png")
PACKAGE = cacheshrink_hybrid.__name__
OPTIONAL = "vllm"
"""A package that some modules need, and the development environment does not have."""


def main(argv: Sequence[str] | None = None) -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    given = parser.parse_args(argv)
    modules = [importlib.import_module(name) for name in module_names()]
    broken = [fault for module in modules for fault in broken_references(module)]
    for fault in broken:
        print(f"error: {fault}", file=sys.stderr)
    if broken:
        return 1
    render(modules, given.output)
    print(f"API reference: {given.output / 'index.html'}")
    return 0


def module_names() -> list[str]:
    """Of all modules that can be imported here."""
    return [name for name in _all_names() if _imported(name) is not None]


def _all_names() -> list[str]:
    found = pkgutil.walk_packages(cacheshrink_hybrid.__path__, f"{PACKAGE}.")
    names = [module.name for module in found if not module.name.endswith("__main__")]
    return [PACKAGE, *sorted(names)]


def _imported(name: str) -> ModuleType | None:
    """A module; None for one that needs what is not installed here."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != OPTIONAL:
            raise
        return None


def render(modules: Sequence[ModuleType], output: Path) -> None:
    import pdoc
    from pdoc import render as settings

    for module in modules:  # pdoc looks for exported names in the module's dictionary
        for name in getattr(module, "__all__", ()):
            vars(module)[name] = getattr(module, name)
    settings.configure(docformat="google", show_source=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning, module=r"pdoc(\.|$)")
        # Packages without `__all__` bring their modules along, those with it do not.
        warnings.filterwarnings("ignore", message="The module specification")
        # transformers makes the signature, with a name that is not in the module's scope.
        warnings.filterwarnings("ignore", message=r".*CacheShrinkConfig\.__init__.*Literal failed")
        names = [module.__name__ for module in modules]
        others = [f"!{name}" for name in _all_names() if name not in names]
        pdoc.pdoc(*names, *others, output_directory=output)


def broken_references(module: ModuleType) -> Iterator[str]:
    """What docstrings of `module` name that is not there."""
    assert module.__file__ is not None
    source = Path(module.__file__)
    nodes = list(ast.walk(ast.parse(source.read_text(encoding="utf-8"))))
    arguments = {node.arg for node in nodes if isinstance(node, ast.arg)}
    defined = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in nodes:
        if not isinstance(node, defined):
            continue
        for name in REFERENCE.findall(ast.get_docstring(node) or ""):
            if name.rpartition(".")[2] in FILE_SUFFIXES or name.partition(".")[0] in arguments:
                continue
            homes = [home for home in _homes(module) if _has(home, name.partition(".")[0])]
            if homes and not any(_has(home, name) for home in homes):
                yield f"{source}: `{name}` is not there"


def _homes(module: ModuleType) -> list[str]:
    """The packages that a name in `module` may be seen from, the nearest first."""
    parts = module.__name__.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def _has(home: str, name: str) -> bool:
    """Whether `name` is a module below `home`, or a name of one."""
    found: object = importlib.import_module(home)
    for part in name.split("."):
        if isinstance(found, ModuleType) and _is_module(f"{found.__name__}.{part}"):
            below = _imported(f"{found.__name__}.{part}")
            if below is None:
                return True
            found = below
        elif hasattr(found, part):
            found = getattr(found, part)
        else:  # attributes of instances are annotated, or set in a method
            return isinstance(found, type) and f"self.{part}" in inspect.getsource(found)
    return True


def _is_module(name: str) -> bool:
    if not name.startswith(PACKAGE):
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


if __name__ == "__main__":
    raise SystemExit(main())

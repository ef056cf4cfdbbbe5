"""Documentation text that comes with every CPython, split into training and held-out modules.

The docstrings of the standard library are read from its source files, parsed and never imported;
the language reference is `pydoc_data.topics`. The demo model is trained on one part. The other
part, a fixed list of modules, is text it has never seen. Wording and amount differ a little from
one Python version to the next; which module belongs to which part does not.
"""

import ast
import functools
import sys
import sysconfig
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

PYTHON_DOCS = "python-docs"
"""Name of this text where data sets are named; every machine has it."""
HELD_OUT_MODULES = (
    "argparse",
    "asyncio",
    "calendar",
    "csv",
    "datetime",
    "decimal",
    "fractions",
    "heapq",
    "logging",
    "pathlib",
    "sched",
    "statistics",
    "textwrap",
    "typing",
    "zipfile",
)
"""Modules whose documentation is held out, together with their `_py` twins such as `_pydecimal`."""

# Often absent from an installation, or large and foreign to the rest; `this` is no documentation.
_SKIPPED_MODULES = frozenset(
    ("distutils", "ensurepip", "idlelib", "lib2to3", "test", "this", "tkinter", "turtledemo")
)
_SKIPPED_FOLDERS = frozenset(("test", "tests", "idle_test", "_vendor", "site-packages"))
_MIN_DOCUMENT_CHARS = 400

# Typographic quotes, dashes, bullet and arrow; NFKD takes care of the ellipsis and of accents.
_PLAIN = str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014\u2022\u2192", "''\"\"--*>")


def normalize(text: str) -> str:
    """`text` in printable ASCII and newlines: accents dropped, tabs expanded, the rest left out."""
    text = unicodedata.normalize("NFKD", text.translate(_PLAIN))
    return "".join(c for c in text if c in "\n\t" or " " <= c <= "~").expandtabs(4)


def is_held_out(module: str) -> bool:
    """Whether the standard library `module`, or the one it is the `_py` twin of, is held out."""
    return module.removeprefix("_py") in HELD_OUT_MODULES


def training_text() -> list[str]:
    """Documents to train on: one per module in alphabetic order, then the reference topics."""
    return list(_documents(held_out=False))


def held_out_text() -> list[str]:
    """Documents of the held-out modules, one per module in alphabetic order."""
    return list(_documents(held_out=True))


@functools.cache
def _documents(held_out: bool) -> tuple[str, ...]:
    # A docstring that several modules share belongs to the held-out part, once.
    seen = set() if held_out else {part for doc in _documents(True) for part in _parts(doc)}
    documents = []
    for module in sorted(sys.stdlib_module_names - _SKIPPED_MODULES):
        if is_held_out(module) == held_out:
            documents.append("\n\n".join(_unseen(_docstrings(module), seen)))
    if not held_out:
        for name in sorted(topics):
            documents.append("\n\n".join(_unseen([normalize(topics[name]).strip()], seen)))
    return tuple(document for document in documents if len(document) >= _MIN_DOCUMENT_CHARS)


def _parts(text: str) -> list[str]:
    return [part for part in text.split("\n\n") if len(part) > 60]


def _unseen(texts: list[str], seen: set[str]) -> Iterator[str]:
    """The texts without the longer paragraphs already in `seen`; adds theirs to it."""
    for text in texts:
        kept = [part for part in text.split("\n\n") if part not in seen]
        seen.update(part for part in kept if len(part) > 60)
        if kept:
            yield "\n\n".join(kept)


def _docstrings(module: str) -> list[str]:
    """Normalized docstrings of a module or package, in order of file and line."""
    root = Path(sysconfig.get_path("stdlib"))
    file, folder = root / f"{module}.py", root / module
    if file.exists():
        paths = [file]
    else:
        paths = sorted(
            path
            for path in folder.rglob("*.py")
            if not _SKIPPED_FOLDERS.intersection(path.relative_to(root).parts)
        )
    found = []
    for path in paths:
        for node in _definitions(ast.parse(path.read_bytes())):
            if text := ast.get_docstring(node):
                found.append(normalize(text).strip())
    return found


_Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _definitions(node: ast.AST) -> Iterator[_Definition]:
    """The module, its classes and functions, and theirs, in source order."""
    if isinstance(node, _Definition):
        yield node
    for child in getattr(node, "body", ()):
        yield from _definitions(child)

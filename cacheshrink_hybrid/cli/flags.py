"""Flags that several programs share, with words and defaults; nothing here imports torch."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

from ..demo.corpus import PYTHON_DOCS
from ..version import __version__
from .preflight import DataSet, Device, Model, TextFile, whole

DTYPES = ("auto", "float32", "bfloat16", "float16")
NOT_SET = "not set"


def new_parser(program: str, description: str | None, needed: str) -> argparse.ArgumentParser:
    """A parser without arguments yet.

    Args:
        needed: what must be given, in the line of usage; all options would fill a page there.
    """
    made = argparse.ArgumentParser(
        prog=f"cacheshrink-hybrid {program}",
        usage=" ".join(["%(prog)s", *needed.split(), "[options]"]),
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "--version",
        action="version",
        version=__version__,
        help="show the version of the package and exit",
    )
    return made


def add_model_arguments(
    parser: argparse.ArgumentParser,
    *,
    several: bool = False,
    optional: bool = False,
    source: bool = False,
) -> None:
    """`model` (or `models`), --device, --dtype, --trust-remote-code.

    Args:
        source: whether a converted model is of no use.
    """
    kind = "source" if source else "source or converted"
    parser.add_argument(
        "models" if several else "model",
        nargs="+" if several else "?" if optional else None,
        type=Model(source=source),
        metavar="MODEL",
        help=f"directory of a {kind} model, or a name on the Hub",
    )
    parser.add_argument(
        "--device", type=Device(), default="cpu", help="torch device (default: cpu)"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="precision to load in (default: auto, that of the checkpoint)",
    )
    add_remote_code_flag(parser)


def add_remote_code_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run modeling code that comes with the model (default: off)",
    )


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """--text, --dataset, --subset, --samples."""
    group = parser.add_argument_group("text to measure on")
    group.add_argument(
        "--text",
        type=TextFile(),
        action="append",
        metavar="FILE",
        help="text file; documents are separated by lines <|endoftext|>. May be repeated "
        "(default: the --dataset)",
    )
    group.add_argument(
        "--dataset",
        type=DataSet(),
        default=PYTHON_DOCS,
        help="data set to use without --text: a name on the Hub, or "
        f"{PYTHON_DOCS}, held-out modules (default: {PYTHON_DOCS})",
    )
    group.add_argument(
        "--subset", default=None, help=f"configuration of the data set (default: {NOT_SET})"
    )
    group.add_argument(
        "--samples",
        type=whole(),
        default=None,
        help="documents to use, evenly spread (default: all)",
    )


def add_settings(
    group: Any,
    record: type,
    names: Iterable[str],
    *,
    choices: Mapping[str, Iterable[str]] | None = None,
    tables: Mapping[str, Mapping[str, Any]] | None = None,
    unset: bool = False,
) -> None:
    """A flag for each of these fields of a dataclass, in the words of its docstring.

    Args:
        choices: allowed values by field name.
        tables: rows by field name, whose own words follow (`methods.TABLES`).
        unset: default to None whatever the dataclass has, so that a flag that was not given can be
            told from one that was.
    """
    words = attribute_docs(record)
    by_name = {field.name: field for field in fields(record)}
    for name in names:
        default = _default(by_name[name])
        shown = NOT_SET if default is None else default
        if isinstance(default, (tuple, list)):
            shown = " ".join(map(str, default)) or NOT_SET
        if isinstance(default, bool):
            shown = "on" if default else "off"
        rows = (tables or {}).get(name, {}).values()
        said = f"{words.get(name, '')} {'; '.join(f'{row.name}: {row.words}' for row in rows)}"
        options: dict[str, Any] = {
            "help": f"{said.strip()} (default: {shown})".strip().replace("%", "%%"),
            "default": None if unset else default,
        }
        kind = _kind(by_name[name])
        if kind is bool:
            simple = not (unset or default or default is None)
            options["action"] = "store_true" if simple else argparse.BooleanOptionalAction
        else:
            options |= {"type": kind, "choices": (choices or {}).get(name)}
            if "tuple" in str(by_name[name].type):
                options["nargs"] = "*"
        group.add_argument("--" + name.replace("_", "-"), **options)


def _kind(field: Field) -> Any:
    """How a value of a field is read: by the first type of its annotation, as of its elements."""
    names = re.findall("bool|float|int|str", str(field.type))
    if set(names) == {"int", "str"}:
        return bits
    return {"bool": bool, "float": float, "int": int, "str": str}[names[0]]


def _default(field: Field) -> Any:
    return None if field.default is MISSING else field.default


def attribute_docs(record: type) -> dict[str, str]:
    """What the `Attributes:` of a class's docstring say of each name, as one line each.

    A line `a, b: words` speaks of both.
    """
    text = inspect.cleandoc(record.__doc__ or "")
    _, _, attributes = text.partition("Attributes:\n")
    docs: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", "\n" + attributes.split("\n\n")[0]):
        names, found, words = entry.partition(":")
        if found:
            for name in names.split(","):
                docs[name.strip()] = " ".join(words.split()).replace("`", "")
    return docs


def bits(text: str) -> int | str:
    """A value of `cache_bits`: a number, or a name."""
    return int(text) if text.isdigit() else text

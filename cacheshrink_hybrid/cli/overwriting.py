"""Outputs that would destroy what the same program reads or writes elsewhere."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from .preflight import (
    DataSet,
    Model,
    NamedOrFile,
    OutputDirectory,
    OutputFile,
    TaskFolder,
    TextFile,
)

READ = (DataSet, Model, NamedOrFile, TaskFolder, TextFile)
"""Types of arguments that name something to read."""


def faults(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Iterator[str]:
    """Files that a program would write over its own inputs, or over each other."""
    inputs = [
        (name, Path(value))
        for action, name, value in _values(parser, given)
        if isinstance(action.type, READ) and Path(value).exists()
    ]
    written: dict[Path, str] = {}
    for action, name, value in _values(parser, given):
        for file in _files(action.type, value):
            reader = next((n for n, read in inputs if _overwrites(file, read)), None)
            other = written.setdefault(file.resolve(), name)
            if reader is not None:
                yield f"{name}: {file} is read by {reader}, and would be lost; give another path"
            elif other != name:
                yield f"{name}: {file} is written by {other} already; give another file"


def _values(
    parser: argparse.ArgumentParser, given: argparse.Namespace
) -> Iterator[tuple[argparse.Action, str, str | Path]]:
    """(action, its name, one of its values) of all arguments, in the order of `--help`."""
    for action in parser._actions:
        value = getattr(given, action.dest, None)
        name = action.option_strings[-1] if action.option_strings else str(action.metavar)
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(one, (str, Path)):
                yield action, name, one


def _files(kind: object, value: str | Path) -> Iterable[Path]:
    """What an argument of this type has a program write."""
    if isinstance(kind, OutputFile):
        return [Path(value)]
    if isinstance(kind, OutputDirectory):
        return [Path(value) / name for name in kind.files]
    return []


def _overwrites(file: Path, read: Path) -> bool:
    """Whether `file` is what is read: that file, or one that is in that directory."""
    if not file.exists():
        return False
    if not read.is_dir():
        return os.path.samefile(file, read)
    inside = read.resolve() in (file.parent.resolve() / file.name).parents
    return inside or any(entry.exists() and entry.samefile(file) for entry in read.iterdir())

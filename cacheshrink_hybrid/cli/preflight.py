"""Argument types that can tell before any work whether their value is of use.

Each parses its text as a `type=` of argparse, and `faults(value)` yields what is wrong with the
value: in one line, without loading a model or writing anything that stays. `faults` asks all
arguments of a program.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from ..byte_counts import parse_budget
from ..calibration.chats import load_chats
from ..checkpoint.files import files_in_the_way
from ..checkpoint.load_faults import (
    GGUF_SUFFIX,
    config_fault,
    device_fault,
    hub_is_offline,
    is_converted_directory,
    model_fault,
)
from ..demo.corpus import PYTHON_DOCS
from ..errors import CalibrationError, ConfigError
from ..integers import LARGEST, SEEDS, shown
from ..writing import space_fault, write_fault

IMAGE_SUFFIXES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".eps", ".ps")


class CheckedType(Protocol):
    """A `type=` of argparse with an opinion."""

    def __call__(self, text: str) -> Any: ...

    def faults(self, value: Any) -> Iterable[str]: ...


def faults(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Iterator[str]:
    """What is wrong with the arguments of a program, one line each, in the order of `--help`."""
    for action in parser._actions:
        value = getattr(given, action.dest, None)
        checks = getattr(action.type, "faults", None)
        if checks is None or value is None:
            continue
        name = action.option_strings[-1] if action.option_strings else str(action.metavar)
        for one in value if isinstance(value, (list, tuple)) else [value]:
            for fault in checks(one):
                yield f"{name}: {fault}"


class Number:
    """A finite number of at least `least`, and at most `most`."""

    def __init__(self, kind: type[int] | type[float], least: float, most: float = math.inf) -> None:
        self.kind = kind
        self.least = least
        self.most = most

    def __call__(self, text: str) -> int | float:
        try:
            return self.kind(text)
        except ValueError as error:
            noun = "whole number" if self.kind is int else "number"
            raise argparse.ArgumentTypeError(f"{text!r} is no {noun}") from error

    def faults(self, value: float) -> Iterator[str]:
        if not self.least <= value or value == math.inf:
            yield f"{shown(value)} must be at least {self.least:g}"
        elif value > self.most:
            yield f"{shown(value)} must be at most {self.most}"


def whole(least: int = 1) -> Number:
    return Number(int, least, LARGEST)


def seed() -> Number:
    return Number(int, 0, SEEDS.stop - 1)


def ratio() -> Number:
    return Number(float, 1.0)


class Memory:
    """An amount of memory, or a share of what is free."""

    def __call__(self, text: str) -> str:
        return text

    def faults(self, value: str) -> Iterator[str]:
        try:
            parse_budget(value)
        except ConfigError as error:
            yield str(error)


class Device:
    """A device that torch can compute on."""

    def __call__(self, text: str) -> str:
        return text

    def faults(self, value: str) -> Iterator[str]:
        fault = device_fault(value)
        if fault is not None:
            yield fault


class Model:
    """A directory, a .gguf file, or a name on the Hub.

    Args:
        source: whether only models that are not converted yet are of use.
        config_file: whether a config.json alone will do.
    """

    def __init__(self, *, source: bool = False, config_file: bool = False) -> None:
        self.source = source
        self.config_file = config_file

    def __call__(self, text: str) -> str:
        return os.path.expanduser(text)

    def faults(self, value: str) -> Iterator[str]:
        path = Path(value)
        only_config = self.config_file and path.is_file() and path.suffix != GGUF_SUFFIX
        fault = config_fault(path) if only_config else model_fault(value)
        if fault is not None:
            yield fault
        elif self.source and is_converted_directory(value):
            yield f"{value} is converted already; give the source model"


class TextFile:
    """A text file in UTF-8."""

    def __call__(self, text: str) -> Path:
        return Path(os.path.expanduser(text))

    def faults(self, value: Path) -> Iterator[str]:
        if not value.is_file():
            yield f"{value} is no file; give the path of a text file"
            return
        try:
            if not value.read_text(encoding="utf-8").strip():
                yield f"{value} holds no text; give a file with some"
        except UnicodeDecodeError as error:
            yield f"{value} is no text in UTF-8 (byte {error.start}); give a text file"
        except OSError as error:
            yield f"{value} cannot be read ({error.strerror}); give a file that can"


class ChatFile(TextFile):
    """A JSON file of conversations."""

    def faults(self, value: Path) -> Iterator[str]:
        found = list(super().faults(value))
        yield from found
        if not found:
            try:
                load_chats(value)
            except CalibrationError as error:
                yield str(error)


class TaskFolder:
    """A folder with YAML files of tasks."""

    def __call__(self, text: str) -> Path:
        return Path(os.path.expanduser(text))

    def faults(self, value: Path) -> Iterator[str]:
        if not value.is_dir():
            yield f"{value} is no folder; give one with YAML files of lm-eval's tasks"
        elif not any(value.rglob("*.yaml")):
            yield f"{value} holds no .yaml file; give a folder with tasks of lm-eval"


class NamedOrFile:
    """One of some names, or a file."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)

    def __call__(self, text: str) -> str:
        return os.path.expanduser(text)

    def faults(self, value: str) -> Iterator[str]:
        if value not in self.names and not Path(value).is_file():
            yield f"{value} is no file; give one, or one of {', '.join(self.names)}"


class DataSet:
    """A text file, `python-docs`, or the name of a data set on the Hub."""

    def __call__(self, text: str) -> str:
        return os.path.expanduser(text)

    def faults(self, value: str) -> Iterator[str]:
        path = Path(value)
        if value == PYTHON_DOCS:
            return
        if path.is_file():
            yield from TextFile().faults(path)
        elif path.is_dir():
            yield f"{value} is a directory; give a text file, or the name of a data set"
        elif path.suffix == ".txt" or path.is_absolute() or len(path.parts) > 2:
            yield f"{value} does not exist; give a text file, or the name of a data set"
        elif hub_is_offline():
            yield (
                f"{value} is no file here, and the Hub cannot be asked for a data set of this name "
                f"(HF_HUB_OFFLINE is set); give a text file, or {PYTHON_DOCS}"
            )


class OutputFile:
    """A file to write; its folder is made if need be.

    Args:
        suffixes: allowed endings; none for any.
    """

    def __init__(self, suffixes: tuple[str, ...] = ()) -> None:
        self.suffixes = suffixes

    def __call__(self, text: str) -> Path:
        return Path(os.path.expanduser(text))

    def faults(self, value: Path) -> Iterator[str]:
        if self.suffixes and value.suffix.lower() not in self.suffixes:
            yield f"{value} must end in one of {', '.join(self.suffixes)}"
        if value.is_dir():
            yield f"{value} is a directory; give the path of a file"
        else:
            yield from _unwritable(value.parent)


class Plot(OutputFile):
    """A picture to write, which takes matplotlib."""

    def __init__(self) -> None:
        super().__init__(IMAGE_SUFFIXES)

    def faults(self, value: Path) -> Iterator[str]:
        yield from super().faults(value)
        yield from no_matplotlib()


class OutputDirectory:
    """A directory to write results into.

    Args:
        files: names of what is written there.
        model: whether a model goes there, which may replace a converted one but no other.
        plots: whether pictures go there.
    """

    def __init__(
        self, files: Iterable[str] = (), *, model: bool = False, plots: bool = False
    ) -> None:
        self.files = tuple(files)
        self.model = model
        self.plots = plots

    def __call__(self, text: str) -> Path:
        return Path(os.path.expanduser(text))

    def faults(self, value: Path) -> Iterator[str]:
        yield from _unwritable(value)
        if self.model:
            yield from another_model(value)
        if self.plots:
            yield from no_matplotlib()


def another_model(directory: Path) -> Iterator[str]:
    """Whether saving a model in `directory` may replace files of something else."""
    found = files_in_the_way(directory)
    if found:
        names = ", ".join(found[:3])
        yield f"{directory} holds another model ({names}); give a directory without one"


def _unwritable(directory: Path) -> Iterator[str]:
    fault = write_fault(directory)
    if fault is not None:
        yield fault


def too_little_space(directory: Path, needed_bytes: int) -> Iterator[str]:
    """Whether a model of this many bytes has no room in a directory that can be written to."""
    if write_fault(directory) is None:
        fault = space_fault(directory, needed_bytes)
        if fault is not None:
            yield fault


def no_matplotlib() -> Iterator[str]:
    if importlib.util.find_spec("matplotlib") is None:
        yield "plots need matplotlib; pip install 'cacheshrink_hybrid[eval]'"


def no_lm_eval() -> Iterator[str]:
    if importlib.util.find_spec("lm_eval") is None:
        yield "tasks need lm-eval; pip install 'cacheshrink_hybrid[lm-eval]'"

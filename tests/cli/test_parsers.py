"""What every program says of itself, at once and in full."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

from cacheshrink_hybrid.cli import PROGRAMS
from cacheshrink_hybrid.cli.flags import attribute_docs
from cacheshrink_hybrid.cli.parsers import convert, finetune
from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.training.settings import TrainingConfig
from cacheshrink_hybrid.version import __version__
from tests.subprocesses import run_python

ROOT = Path(__file__).parents[2]
EVAL = (
    "allocator",
    "memory",
    "perplexity",
    "prefix",
    "recall",
    "retrieval",
    "states",
    "sweep",
    "tasks",
    "throughput",
)
MODULES = ["cacheshrink_hybrid", *(f"eval.{name}" for name in EVAL), "training.finetune"]
# Runs a module with some arguments and says how it ended and whether it had imported the heavy.
RUN = """
import contextlib, io, json, runpy, sys
module, *arguments = json.loads(sys.argv[1])
sys.argv = [module, *arguments]
out, status = io.StringIO(), None
with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as exit:
        status = exit.code
heavy = [name for name in ("torch", "transformers", "matplotlib") if name in sys.modules]
print(json.dumps([status, heavy, out.getvalue()]))
"""


def parsers_of(program: str):
    return import_module(f"cacheshrink_hybrid.cli.parsers.{program}")


def ended(*command: str) -> tuple[int, list[str], str]:
    done = run_python("-c", RUN, json.dumps(command))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["--help"], 0), (["--nonsense"], 2), ([], 2)],
    ids=["help", "unknown flag", "nothing"],
)
@pytest.mark.parametrize("module", MODULES)
def test_nothing_heavy_is_imported_to_talk(module: str, arguments: list[str], status: int) -> None:
    if module in ("eval.allocator", "eval.prefix", "eval.throughput") and not arguments:
        pytest.skip("needs no argument, and would run")
    found, heavy, out = ended(module, *arguments)
    assert (found, heavy) == (status, [])
    assert "usage: cacheshrink-hybrid" in out


@pytest.mark.parametrize("program", PROGRAMS)
def test_nothing_heavy_is_imported_to_explain_a_program(program: str) -> None:
    status, heavy, out = ended("cacheshrink_hybrid", program, "--help")
    assert (status, heavy) == (0, [])
    assert f"cacheshrink-hybrid {program}" in out


def test_nothing_heavy_is_imported_to_refuse() -> None:
    status, heavy, out = ended("cacheshrink_hybrid", "perplexity", "/no/such", "--samples", "0")
    assert (status, heavy) == (2, [])
    assert out.count("error: ") == 2


@pytest.mark.parametrize(
    "command",
    [
        *([module] for module in MODULES),
        *(["cacheshrink_hybrid", program] for program in PROGRAMS),
    ],
    ids=" ".join,
)
def test_version(command: list[str]) -> None:
    assert ended(*command, "--version") == [0, [], __version__ + "\n"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_option_has_words_and_its_default(program: str) -> None:
    for action in parsers_of(program).parser()._actions:
        if action.option_strings[:1] == ["-h"]:
            continue
        words = (action.help or "").split("(default:")[0].split("(needed)")[0]
        assert len(words.split()) >= 2, action
        if action.nargs == 0 and action.default == argparse.SUPPRESS:
            continue  # --version
        if action.option_strings and not action.required:
            assert "(default:" in action.help or "(needed)" in action.help, action


@pytest.mark.parametrize("program", PROGRAMS)
def test_stated_defaults_are_the_defaults(program: str) -> None:
    """Of flags with a plain default, a number or a name."""
    for action in parsers_of(program).parser()._actions:
        plain = isinstance(action.default, (int, float, str)) and action.default is not True
        if plain and action.default and action.default != argparse.SUPPRESS:
            shown = (
                f"{action.default:g}" if isinstance(action.default, float) else str(action.default)
            )
            stated = action.help.rsplit("(default: ", 1)[1].rstrip(")").split(",")[0]
            if isinstance(action.default, float):
                assert float(stated) == action.default
            else:
                assert stated == shown


@pytest.mark.parametrize(
    ("record", "groups"),
    [
        (CompressionConfig, convert.GROUPS),
        (TrainingConfig, finetune.GROUPS),
    ],
    ids=["convert", "finetune"],
)
def test_every_setting_has_a_flag_in_the_words_of_its_record(record: type, groups: dict) -> None:
    names = [name for group in groups.values() for name in group]
    assert sorted(names) == sorted(field.name for field in fields(record))
    assert set(attribute_docs(record)) == set(names)


def test_words_of_several_names() -> None:
    words = attribute_docs(TrainingConfig)
    assert words["euclidean_lr"] == words["riemannian_lr"]
    assert "`" not in words["loss"]

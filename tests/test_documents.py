"""Documents say what is true: code runs, commands parse, lists and figures are the package's."""

from __future__ import annotations

import re
import shlex
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from cacheshrink_hybrid.cli import PROGRAMS
from cacheshrink_hybrid.methods import LATENT_KINDS, METRICS
from scripts import list_families, print_figures
from scripts.figures.studies import STUDIES, Study

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
]
NOT_RUN = re.compile(r"<!-- not run: .+ -->\n+$")
BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")
ORDINARY = {"pip", "git", "cd", "cp", "head", "mkdir", "python", "export", "tail", "."}
"""Commands that are not ours to test."""


def blocks(document: str, language: str) -> list[str]:
    """The code blocks of a language, but those that a comment before them calls not to be run."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return [
        found["code"]
        for found in BLOCK.finditer(text)
        if found["language"] == language and not NOT_RUN.search(text[: found.start()])
    ]


def commands(document: str) -> list[list[str]]:
    lines = "".join(blocks(document, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.mark.slow
@pytest.mark.parametrize("document", ["README.md", "docs/USAGE.md"])
def test_python_blocks_run_in_order(
    document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program = "\n".join(blocks(document, "python"))
    exec(compile(program, document, "exec"), {"__name__": "__main__"})
    assert (tmp_path / "small" / "config.json").exists()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_are_there(document: str) -> None:
    for words in commands(document):
        check_command(words)


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_commands_of_figures_are_there(study: Study) -> None:
    for line in study.commands:
        check_command(shlex.split(line.split("|")[0]))


def check_command(words: list[str]) -> None:
    """A command of ours names a program that exists, with flags that it has."""
    if words[0] == "cacheshrink-hybrid":
        assert words[1] in PROGRAMS
        parser = import_module(f"cacheshrink_hybrid.cli.parsers.{words[1]}").parser()
        known = {flag for action in parser._actions for flag in action.option_strings}
        assert {word for word in words if word.startswith("--")} <= known
    elif words[:3] == ["bash", "scripts/vllm.sh", "-m"]:
        check_command(["python", *words[2:]])
    elif words[0] == "bash":
        assert (ROOT / words[1]).exists()
        known_flags = (ROOT / words[1]).read_text(encoding="utf-8")
        if words[1] != "scripts/demo.sh":  # whose flags are the program's
            assert all(word in known_flags for word in words[2:] if word.startswith("--"))
    elif words[:2] == ["python", "-m"] and words[2].split(".")[0] in (
        "scripts",
        "eval",
        "training",
    ):
        source = ROOT / (words[2].replace(".", "/") + ".py")
        text = source.read_text(encoding="utf-8") + (ROOT / "scripts/benchmark.py").read_text(
            "utf-8"
        )
        flags = {word for word in words[3:] if word.startswith("--")} - {"--help"}
        assert all(f'"{flag}"' in text for flag in flags)
    else:
        assert words[0] in ORDINARY, words


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in LINK.findall(text):
        assert (ROOT / document).parent.joinpath(target).exists(), target


def test_families_are_those_of_the_rows() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert list_families.BLOCK.search(text)
    assert list_families.filled(text) == text, "run python -m scripts.list_families"


def test_extras_are_named() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = set(tomllib.load(file)["project"]["optional-dependencies"]) - {"dev", "docs"}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    install = text.partition("\n## Install\n")[2].partition("\n## ")[0]
    assert {extra for extra in extras if f"`{extra}`" in install} == extras


def test_sizes_in_the_readme_are_those_of_the_published_configs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = (ROOT / "eval/results/reference_models.md").read_text(encoding="utf-8")
    (row,) = (line for line in table.splitlines() if "granite-4.0-h-small" in line)
    for size in row.replace("|", " ").split()[-2:]:
        assert size in text


@pytest.mark.parametrize("document", print_figures.DOCUMENTS)
def test_figures_are_those_of_the_results(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    assert print_figures.BLOCK.search(text)
    assert print_figures.filled(text) == text, "run python -m scripts.print_figures"


def test_every_study_is_shown() -> None:
    pages = [page for page in print_figures.DOCUMENTS if page != "README.md"]
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in pages)
    shown = [found["name"] for found in print_figures.BLOCK.finditer(text)]
    assert sorted(shown) == sorted(study.name for study in STUDIES)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_are_there(document: str) -> None:
    """Paths in backticks, or the ends of them, are those of files and folders here."""
    text = (ROOT / document).read_text(encoding="utf-8")
    named = re.findall(r"`([\w./-]+(?:/|\.py|\.md|\.txt|\.sh))`", text)
    folders = ("cacheshrink_hybrid", "docs", "eval", "findings", "scripts", "tests", "training")
    found = [*ROOT.iterdir(), *(p for folder in folders for p in (ROOT / folder).rglob("*"))]
    known = [f"/{path.relative_to(ROOT)}{'/' * path.is_dir()}" for path in found]
    assert not [path for path in named if not any(one.endswith(f"/{path}") for one in known)]


def test_choices_are_described() -> None:
    text = (ROOT / "docs/METHOD.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE))
    assert {*LATENT_KINDS, *METRICS} <= named

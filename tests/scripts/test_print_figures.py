"""Blocks of figures show what was measured, or say that it was not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts import print_figures
from scripts.figures.studies import Study

ENVIRONMENT = {"commit": "abcdef0123", "torch": "2", "transformers": "5", "modified": False}
STUDY = Study(
    name="a study",
    commands=("python measure.py",),
    results=("one.json", "two.json"),
    shown=lambda results: f"{len(results)} results",
)
DOCUMENT = "Before.\n\n<!-- figures: a study -->\nold\n<!-- end of figures -->\nAfter.\n"


@pytest.fixture
def results(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr(print_figures, "CHECKOUT", tmp_path)
    monkeypatch.setattr(print_figures, "STUDIES", (STUDY,))
    folder = tmp_path / print_figures.RESULTS
    folder.mkdir(parents=True)
    return folder


def test_a_study_without_all_of_its_results_is_not_measured(results: Path) -> None:
    (results / "one.json").write_text(json.dumps(ENVIRONMENT))
    shown = print_figures.filled(DOCUMENT)
    assert "\nNot measured yet.\n\n```bash\npython measure.py\n```\n" in shown
    (results / "two.json").write_text(json.dumps(ENVIRONMENT))
    shown = print_figures.filled(DOCUMENT)
    assert "Not measured" not in shown and "old" not in shown
    assert "2 results\n\nResults: `one.json`, `two.json`; commit abcdef01, torch 2" in shown

"""What names of models stand for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cacheshrink_hybrid.checkpoint.load_faults import model_fault
from cacheshrink_hybrid.checkpoint.model_names import is_repo_id, lasting_name, public_name

NAMES = {
    "someone/tiny": "someone/tiny",
    "gpt2": "gpt2",
    "/home/me/tiny": "tiny",
    "../tiny": "tiny",
    "a/b/c": "c",
    "my model": "my model",
    "": "",
}


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_public_names(name: str, expected: str) -> None:
    assert public_name(name) == expected


@pytest.mark.parametrize("name", ["model--v1", "a..b", "x.git", "mödel", ".", "x" * 97, "x\0y", ""])
def test_no_names_on_the_hub(name: str) -> None:
    """Such as are nothing here are refused in words, also as models to load."""
    assert not is_repo_id(name)
    if name not in (".", ""):
        assert "does not exist; give the directory" in str(model_fault(name))


def test_what_is_here_goes_by_its_absolute_path(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("gpt2").mkdir()
    for name in ("gpt2", "./gpt2", "~/gpt2"):
        assert lasting_name(name) == os.path.join(tmp_path, "gpt2")
    for name in ("someone/gpt2", "", "~nobody-here/gpt2", "x" * 999):
        assert lasting_name(name) == name

"""What goes to the Hub: the files of a save, with a card where the repository has none."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedModel

from cacheshrink_hybrid.checkpoint import uploads
from cacheshrink_hybrid.errors import ConfigError
from tests.models import pair


class Hub:
    """Stands for the Hub, and remembers what it was given."""

    def __init__(self, has_card: bool = False) -> None:
        self.has_card = has_card
        self.names: set[str] = set()
        self.given: dict[str, Any] = {}

    def __call__(self, token=None) -> Hub:
        self.given["token"] = token
        return self

    def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool):
        self.given |= {"private": private}
        assert exist_ok
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def create_branch(self, repo_id: str, branch: str, exist_ok: bool) -> None:
        self.given["branch"] = branch

    def file_exists(self, repo_id: str, name: str, revision: str | None) -> bool:
        assert name == "README.md"
        return self.has_card

    def upload_folder(self, folder_path: Path, allow_patterns: list[str], **given: Any):
        files = [path.relative_to(folder_path) for path in Path(folder_path).rglob("*")]
        self.names = {
            str(file) for file in files if any(fnmatch(str(file), p) for p in allow_patterns)
        }
        self.given |= given
        return SimpleNamespace(commit_url="https://hub/commit")


def converted() -> PreTrainedModel:
    return pair("llama", "auto", ratio=4.0, metric="activation").converted


def saved_and_pushed(model: PreTrainedModel, directory: Path, **given: Any) -> str:
    return model.save_pretrained(directory, push_to_hub=True, **{"repo_id": "small", **given})


def pushed(model: PreTrainedModel, directory: Path, **given: Any) -> str:
    return model.push_to_hub("small", **given)


WAYS: list[Callable] = [saved_and_pushed, pushed]
FILES = {
    "README.md",
    "cacheshrink_plan.json",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "modeling_cacheshrink_hybrid.py",
}


@pytest.mark.parametrize("push", WAYS)
@pytest.mark.parametrize("has_card", [True, False])
def test_files(has_card: bool, push: Callable, tmp_path: Path, monkeypatch) -> None:
    hub = Hub(has_card)
    monkeypatch.setattr(uploads, "HfApi", hub)
    (tmp_path / "diary.txt").write_text("mine")
    given = {"token": "t", "private": True, "commit_message": "small", "revision": "next"}
    assert push(converted(), tmp_path, **given) == "https://hub/commit"
    assert hub.names == FILES - ({"README.md"} if has_card else set())
    assert hub.given.items() >= {**given, "branch": "next", "repo_id": "me/small"}.items()


def test_the_directory_names_the_repository(tmp_path: Path, monkeypatch) -> None:
    hub = Hub()
    monkeypatch.setattr(uploads, "HfApi", hub)
    converted().save_pretrained(tmp_path / "tiny", push_to_hub=True)
    assert hub.given["repo_id"] == "me/tiny"


@pytest.mark.parametrize("name", ["my model", "model--v1", "mödel", "x" * 97])
def test_names_that_no_repository_has(name: str, tmp_path: Path) -> None:
    """Told before anything is written, of a directory's name as of one that is given."""
    for given in ({}, {"repo_id": f"me/{name}"}):
        with pytest.raises(ConfigError, match=r"repo_id=.* is no name on the Hub.*give repo_id"):
            converted().save_pretrained(tmp_path / name, push_to_hub=True, **given)
    with pytest.raises(ConfigError, match="is no name on the Hub"):
        converted().push_to_hub(name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [{"repo_id": "a"}, {"push_to_hub": True, "comit_message": "x"}])
def test_arguments_that_would_be_ignored(given: dict, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"takes no (repo_id|comit_message); beside"):
        converted().save_pretrained(tmp_path / "model", **given)
    assert not list(tmp_path.iterdir())

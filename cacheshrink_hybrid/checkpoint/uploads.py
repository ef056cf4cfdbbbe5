"""Putting a saved model on the Hub: the files of the save, and nothing else of its directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi

from ..errors import ConfigError
from .files import CARD_NAME
from .model_names import is_repo_id

UPLOAD_ARGUMENTS = (
    "repo_id",
    "commit_message",
    "commit_description",
    "private",
    "revision",
    "create_pr",
)


def check_repository(repo_id: str) -> None:
    """Raise `ConfigError` if the Hub can have no repository of this name."""
    if not is_repo_id(repo_id):
        raise ConfigError(
            f"repo_id={repo_id!r} is no name on the Hub, which is 'name' or 'owner/name' of "
            "letters, digits, '-', '_' and '.'; give repo_id with push_to_hub"
        )


def upload(
    directory: Path,
    names: Sequence[str],
    *,
    repo_id: str,
    token: str | bool | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload the files `names` of `directory` in one commit; a card that is there already stays.

    Args:
        repo_id: of the repository, which is made if need be.
        private: whether a new repository is.
        revision: branch, which is made if need be.
        create_pr: open a pull request instead of committing.

    Returns:
        The commit's address.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not create_pr:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    if CARD_NAME in names and api.file_exists(repo_id, CARD_NAME, revision=revision):
        names = [name for name in names if name != CARD_NAME]
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=directory,
        allow_patterns=list(names),
        commit_message=commit_message or "Upload model",
        commit_description=commit_description,
        revision=revision,
        create_pr=create_pr,
    )
    return commit.commit_url

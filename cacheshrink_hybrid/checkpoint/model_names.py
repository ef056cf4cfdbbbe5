"""What the name of a model stands for: a file or directory here, or a repository on the Hub."""

from __future__ import annotations

import os


def is_repo_id(name: str) -> bool:
    """Whether the Hub could have a repository of this name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def lasting_name(name: str) -> str:
    """The absolute path of what lies here under this name, which holds wherever the process goes
    next; any other name as it is."""
    for path in (name, os.path.expanduser(name)):
        if os.path.exists(path):
            return os.path.abspath(path)
    return name


def public_name(name: str) -> str:
    """A name on the Hub as it is, and the last part of a path, which is nobody else's business."""
    return name if not name or is_repo_id(name) else os.path.basename(os.path.abspath(name))

"""What programs leave behind: JSON with the circumstances, and the sizes that tables show."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from ..plan import TOTAL_LENGTHS, CompressionPlan
from ..spec import ModelSpec
from ..version import __version__
from ..writing import write_text


def circumstances() -> dict[str, Any]:
    """Versions, commit and device, to be kept beside every measured figure."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    return {
        "cacheshrink_hybrid": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": device or platform.machine(),
        **checkout_state(),
    }


def byte_columns(spec: ModelSpec, plan: CompressionPlan | None) -> dict[str, int]:
    """KV bytes per token, state bytes per sequence, and both together at 1k, 8k and 32k tokens.

    Args:
        plan: of the conversion; None for the model as it is.
    """
    if plan is None:
        return size_columns(spec, spec.bytes_per_token, spec.bytes_per_sequence)
    record = {"bytes_per_token": plan.bytes_per_token, "state_bytes": plan.state_bytes}
    return record | {_total_name(n): plan.bytes_at(spec, n) for n in TOTAL_LENGTHS}


def size_columns(spec: ModelSpec, bytes_per_token: int, state_bytes: int) -> dict[str, int]:
    """`byte_columns` where all attention layers shrink by the same share."""
    share = bytes_per_token / max(1, spec.bytes_per_token)
    record = {"bytes_per_token": bytes_per_token, "state_bytes": state_bytes}
    return record | {
        _total_name(n): round(share * spec.kv_bytes(n)) + state_bytes for n in TOTAL_LENGTHS
    }


def _total_name(num_tokens: int) -> str:
    return f"bytes_at_{num_tokens // 1024}k"


def size_key(records: Sequence[dict[str, Any]]) -> str:
    """What tells these records' sizes apart: bytes per token where the states are all alike."""
    alike = len({record.get("state_bytes") for record in records}) == 1
    return "bytes_per_token" if alike and records[0]["bytes_per_token"] else "bytes_at_8k"


def checkout_state() -> dict[str, Any]:
    """`commit` of the checkout that this package runs from, and whether its code was `modified`
    since; both None for an installed package."""
    package = Path(__file__).resolve().parents[1]
    tracked = _git(package, "ls-files", "--error-unmatch", "version.py")
    if tracked is None:
        return {"commit": None, "modified": None}
    changed = _git(package.parent, "status", "--porcelain", "--", package.name, "eval", "scripts")
    code = [line for line in (changed or "").splitlines() if "eval/results" not in line]
    return {"commit": _git(package, "rev-parse", "HEAD"), "modified": bool(code)}


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=directory, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def write_json(path: Path, results: dict[str, Any]) -> None:
    """Write `results` with the circumstances under `environment`.

    Raises:
        OutputError: the file cannot be written.
    """
    write_text(path, json.dumps({"environment": circumstances(), **results}, indent=2) + "\n")

"""What programs leave behind: JSON with the circumstances, and a plot."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from ..errors import ConfigError
from ..plan import CompressionPlan
from ..spec import ModelSpec
from ..version import __version__

MAX_TICKS = 8
TOTAL_LENGTHS = (1024, 8192, 32768)
SIZE_LABELS = {
    "bytes_per_token": "KV cache, bytes per token at 16 bits",
    "bytes_at_8k": "keys, values and states of 8k tokens, bytes",
}


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
    """Write `results` with the circumstances under `environment`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"environment": circumstances(), **results}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")


def plot_tradeoff(path: Path, records: Sequence[dict[str, Any]], title: str) -> None:
    """Perplexity against cache bytes, one labelled point per record.

    Args:
        records: dicts with `model`, `byte_columns` and `perplexity`.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    size = size_key(records)
    figure, axes = _axes(records, size, title)
    points = sorted((r[size], r["perplexity"]) for r in records)
    axes.plot(*zip(*points, strict=True), "o-", color="#3465a4")
    for record in records:
        axes.annotate(
            str(record["model"]),
            (record[size], record["perplexity"]),
            xytext=(6, 6),
            textcoords="offset points",
            fontsize=9,
        )
    _save(figure, path)


def plot_front(path: Path, records: Sequence[dict[str, Any]], title: str) -> None:
    """Perplexity over the source against cache bytes, one line per series.

    Args:
        records: dicts with `series`, `byte_columns`, `change_percent` and `front`.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    size = size_key(records)
    figure, axes = _axes(records, size, title)
    for series in dict.fromkeys(record["series"] for record in records):
        points = sorted(
            # A logarithmic axis has no zero; below a thousandth of a percent is noise anyway.
            (r[size], max(r["change_percent"], 1e-3))
            for r in records
            if r["series"] == series
        )
        axes.plot(*zip(*points, strict=True), "o-", label=series, markersize=4)
    front = [(r[size], max(r["change_percent"], 1e-3)) for r in records if r["front"]]
    axes.scatter(
        *zip(*front, strict=True), s=90, facecolors="none", edgecolors="black", label="front"
    )
    axes.set_yscale("log")
    axes.set_ylabel("perplexity over the source's, %")
    axes.legend(fontsize=8)
    _save(figure, path)


def plot_bars(path: Path, groups: dict[str, dict[str, float]], title: str, label: str) -> None:
    """Bars of `groups[group][series]`, one colour per series.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    figure, axes = _pyplot().subplots(figsize=(9, 4.2), layout="constrained")
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        places = [place + (number + 0.5) * width - 0.4 for place in range(len(groups))]
        axes.bar(places, [group.get(name, 0.0) for group in groups.values()], width, label=name)
    axes.set_xticks(range(len(groups)), list(groups), fontsize=8)
    axes.set_ylabel(label)
    axes.set_title(title)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    _save(figure, path)


def plot_losses(path: Path, records: Sequence[dict[str, Any]], title: str) -> None:
    """Training loss by step, and perplexity where it was measured.

    Args:
        records: dicts with `step`, and `loss` or `eval_perplexity`.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    figure, axes = _pyplot().subplots(figsize=(7, 4.2), layout="constrained")
    points = [(r["step"], r["loss"]) for r in records if "loss" in r]
    if points:
        axes.plot(*zip(*points, strict=True), color="#3465a4")
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    measured = [(r["step"], r["eval_perplexity"]) for r in records if "eval_perplexity" in r]
    if measured:
        other = axes.twinx()
        other.plot(*zip(*measured, strict=True), "o--", color="#cc0000", markersize=4)
        other.set_ylabel("perplexity through the cache")
    _save(figure, path)


def _axes(records: Sequence[dict[str, Any]], size: str, title: str):
    figure, axes = _pyplot().subplots(figsize=(7, 4.2), layout="constrained")
    sizes = sorted({record[size] for record in records})
    axes.set_xscale("log", base=2)
    if len(sizes) <= MAX_TICKS:
        axes.set_xticks(sizes, [str(size) for size in sizes])
    else:
        axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xlabel(SIZE_LABELS[size])
    axes.set_ylabel("perplexity through the cache")
    axes.set_title(title)
    axes.margins(0.12, 0.15)
    axes.grid(alpha=0.3)
    return figure, axes


def _pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError("the plot needs matplotlib; install cacheshrink_hybrid[eval]") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)

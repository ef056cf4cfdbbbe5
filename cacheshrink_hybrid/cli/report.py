"""What programs leave behind: JSON with the circumstances, and a plot."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from ..errors import ConfigError
from ..version import __version__


def circumstances() -> dict[str, Any]:
    """Versions and device, to be kept beside every measured figure."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    return {
        "cacheshrink_hybrid": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": device or platform.machine(),
    }


def write_json(path: Path, results: dict[str, Any]) -> None:
    """Write `results` with the circumstances under `environment`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"environment": circumstances(), **results}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")


def plot_tradeoff(path: Path, records: Sequence[dict[str, Any]], title: str) -> None:
    """Perplexity against cache bytes per token, one labelled point per record.

    Args:
        records: dicts with `model`, `bytes_per_token` and `perplexity`.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError(
            "the plot needs matplotlib; install cacheshrink_hybrid[eval], or leave out --plot"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    bytes_per_token = [record["bytes_per_token"] for record in records]
    perplexities = [record["perplexity"] for record in records]
    order = sorted(range(len(records)), key=lambda i: bytes_per_token[i])
    axes.plot(
        [bytes_per_token[i] for i in order], [perplexities[i] for i in order], "o-", color="#3465a4"
    )
    for record in records:
        axes.annotate(
            str(record["model"]),
            (record["bytes_per_token"], record["perplexity"]),
            xytext=(6, 6),
            textcoords="offset points",
            fontsize=9,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(set(bytes_per_token)), [str(b) for b in sorted(set(bytes_per_token))])
    axes.minorticks_off()
    axes.set_xlabel("KV cache, bytes per token at 16 bits")
    axes.set_ylabel("perplexity through the cache")
    axes.set_title(title)
    axes.margins(0.12, 0.15)
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)

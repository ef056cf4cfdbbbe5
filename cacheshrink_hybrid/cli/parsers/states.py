"""Perplexity and recall against bytes of recurrent state, over ratios, methods, codes; and drift.

    cacheshrink-hybrid states MODEL --text test.txt --calibration train.txt --output DIR

Keys and values are left as they are, so that what is measured is the states' doing. A point is
`RATIO`, `RATIO:CODE`, `RATIO:CODE:REPLAY` or `RATIO:CODE:REPLAY:METHOD`, as in `4`, `2:float16:1`,
`8:int8:4` and `2:float32:1:prune`; an `auto` stands for what conversion chooses. With --drift N,
the last point, the same ranks with float32 states, and the source decode N tokens of the text with
states that are never recomputed, and perplexity is printed per 1,000 tokens: what coding adds must
not grow. Writes states.json and states.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...calibration.exercises import RECALL_KINDS
from ...config import CompressionConfig
from ...demo.corpus import PYTHON_DOCS
from ...errors import ConfigError
from ...methods import METRICS
from ..flags import add_model_arguments, add_text_arguments, new_parser
from ..preflight import DataSet, OutputDirectory, seed, whole

DEFAULT_POINTS = ("2:float32:1", "2:float16:1", "4", "8", "8:int8:2", "2:float32:1:prune")
DRIFT_STRETCH = 1000
OUTPUT = Path("cacheshrink-states")


def parser() -> argparse.ArgumentParser:
    made = new_parser("states", __doc__, "MODEL")
    add_model_arguments(made, source=True)
    made.add_argument(
        "--points",
        nargs="+",
        default=list(DEFAULT_POINTS),
        metavar="POINT",
        help=f"what to convert to, see above (default: {' '.join(DEFAULT_POINTS)})",
    )
    made.add_argument(
        "--output",
        type=OutputDirectory(("states.json", "states.md")),
        default=OUTPUT,
        help=f"directory to write (default: {OUTPUT})",
    )
    made.add_argument("--seed", type=seed(), default=0, help="of everything (default: 0)")
    add_text_arguments(made)
    _add_calibration(made.add_argument_group("calibration"))
    _add_measurement(made.add_argument_group("measurement"))
    return made


def _add_calibration(group: Any) -> None:
    group.add_argument(
        "--calibration",
        type=DataSet(),
        default=PYTHON_DOCS,
        help=f"text file or data set to calibrate on (default: {PYTHON_DOCS})",
    )
    group.add_argument(
        "--calibration-samples", type=whole(), default=48, help="its documents (default: 48)"
    )
    group.add_argument(
        "--recall-samples",
        type=whole(0),
        default=None,
        help="exercises in remembering beside it (default: a quarter of the documents)",
    )
    group.add_argument(
        "--metric",
        choices=[row.name for row in METRICS.values() if row.observer is not None],
        default="fisher",
        help="what counts as loss (default: fisher)",
    )


def _add_measurement(group: Any) -> None:
    group.add_argument(
        "--max-length",
        type=whole(2),
        default=1024,
        help="tokens per window, of calibration too (default: 1024)",
    )
    group.add_argument(
        "--max-chars",
        type=whole(),
        default=None,
        help="characters to read of each document (default: all)",
    )
    group.add_argument("--batch-size", type=whole(), default=8, help="windows at once (default: 8)")
    group.add_argument(
        "--distances",
        type=whole(),
        nargs="*",
        default=[64, 256],
        help="of recall, in tokens; none for no recall (default: 64 256)",
    )
    group.add_argument(
        "--exercises", type=whole(), default=16, help="per kind and distance (default: 16)"
    )
    group.add_argument(
        "--kinds",
        nargs="+",
        choices=RECALL_KINDS,
        default=list(RECALL_KINDS),
        help=f"what is to be remembered (default: {' '.join(RECALL_KINDS)})",
    )
    group.add_argument(
        "--drift",
        type=whole(0),
        default=0,
        metavar="N",
        help="tokens to decode with states that are never recomputed (default: 0, none)",
    )


def faults(given: argparse.Namespace) -> Iterator[str]:
    for point in given.points:
        try:
            CompressionConfig(metric=given.metric, **point_settings(point))
        except ConfigError as error:
            yield f"--points {point}: {error}"
    if 0 < given.drift < DRIFT_STRETCH:
        yield f"--drift {given.drift} must be at least {DRIFT_STRETCH}"


def point_settings(point: str) -> dict[str, Any]:
    """`RATIO:CODE:REPLAY:METHOD` as settings of a `CompressionConfig`."""
    parts = point.split(":")
    if len(parts) > 4:
        raise ConfigError(f"point {point!r} has {len(parts)} parts; RATIO:CODE:REPLAY:METHOD has 4")
    parts += ["auto"] * (4 - len(parts))
    try:
        settings = {"state_ratio": float(parts[0]), "state_dtype": parts[1]}
        settings["replay_length"] = None if parts[2] == "auto" else int(parts[2])
    except ValueError as error:
        raise ConfigError(f"point {point!r} is no RATIO:CODE:REPLAY:METHOD: {error}") from error
    return settings | {"state_method": parts[3]}

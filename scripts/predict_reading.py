"""Predict what a decode step moves and multiplies for its context, by the model of a device.

    python -m scripts.predict_reading                          # Llama-3.1-8B at 32k on an H200
    python -m scripts.predict_reading --device A100 --ratios 4 8 --kept 0.92 0.8

Nothing is measured: bytes, scratch between launches included, and products are those of
`latents.fit.read_time`, and the time of a launch is the longer of both at the data sheet's rates,
which no kernel reaches. Beside every kind of latent stands attention over 16-bit keys and values
(FlashAttention), by the same model. A whole step also reads the weights, once for all sequences of
a batch. How many channels a latent keeps is found by calibration and not known here: `--kept` gives
a share of them for each ratio. Last comes the result as one line of JSON.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cacheshrink_hybrid.device_profile import DeviceProfile
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.latents.fit.read_time import Reading, Work
from cacheshrink_hybrid.methods import LATENT_KINDS
from cacheshrink_hybrid.spec import BYTES_16BIT

from .benchmark import environment, report
from .figures.speed import predicted_reading

KINDS = ("joint", "per_head", "rotate", "rotate_joint")


def main(argv: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(argv)
    try:
        profile = DeviceProfile.parse(given.device)
        if len(given.ratios) != len(given.kept):
            raise ConfigError(
                f"--ratios has {len(given.ratios)} numbers and --kept {len(given.kept)}; give a "
                "share for each ratio"
            )
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = [_source(given, profile)]
    for ratio, kept in zip(given.ratios, given.kept, strict=True):
        rows += [_latent(given, profile, kind, ratio, kept) for kind in KINDS]
    weights = given.parameters * BYTES_16BIT / profile.bandwidth
    source = rows[0]["seconds"]
    for row in rows:
        row["speedup"] = source / row["seconds"]
        row["steps"] = [
            {
                "batch": batch,
                "seconds": weights + batch * row["seconds"],
                "speedup": (weights + batch * source) / (weights + batch * row["seconds"]),
            }
            for batch in given.batches
        ]
    unused = ("json", "threads", "seed")
    settings = {key: value for key, value in vars(given).items() if key not in unused}
    result = {"environment": environment(), "settings": settings, "rows": rows}
    print(predicted_reading([result]))
    report(result, given.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", default="Llama-3.1-8B", help="of the shape")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--heads", type=int, default=32, help="query heads")
    parser.add_argument("--key-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--context", type=int, default=32768, help="tokens of one sequence")
    parser.add_argument("--parameters", type=float, default=8.03e9, help="of the model")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="sequences")
    parser.add_argument("--device", default="H200", help="a DeviceProfile, see convert --help")
    parser.add_argument("--ratios", type=float, nargs="+", default=[4.0, 8.0])
    parser.add_argument(
        "--kept", type=float, nargs="+", default=[0.9, 0.8], help="share of channels, by ratio"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the JSON result here")
    return parser


def _source(given: argparse.Namespace, profile: DeviceProfile) -> dict[str, Any]:
    row_bytes = 2 * given.key_heads * given.head_dim * BYTES_16BIT
    work = Work(row_bytes, 2 * given.heads * 2 * given.head_dim)
    return _row(given, profile, "FlashAttention", 1.0, (work,))


def _latent(
    given: argparse.Namespace, profile: DeviceProfile, kind: str, ratio: float, kept: float
) -> dict[str, Any]:
    width = given.key_heads * given.head_dim
    row = LATENT_KINDS[kind]
    channels = round(kept * (2 * width if row.joint else width))
    reading = Reading(
        method=kind,
        read_mode=row.read_mode or "reconstruct",
        num_heads=given.heads,
        kv_width=width,
        head_dim=given.head_dim,
        key_rank=channels,
        value_rank=channels,
        row_bytes=round(2 * width * BYTES_16BIT / ratio),
    )
    return _row(given, profile, kind, ratio, reading.launches(profile))


def _row(
    given: argparse.Namespace,
    profile: DeviceProfile,
    kind: str,
    ratio: float,
    launches: tuple[Work, ...],
) -> dict[str, Any]:
    """Of one step of one sequence: all layers, all tokens."""
    tokens = given.layers * given.context
    seconds = sum(work.seconds(profile) for work in launches)
    by_bytes = [work for work in launches if work.waits_for_bytes(profile)]
    for_bytes = sum(work.seconds(profile) for work in by_bytes)
    return {
        "kind": kind,
        "ratio": ratio,
        "launches": len(launches),
        "bytes": round(tokens * sum(work.num_bytes for work in launches)),
        "products": round(tokens * sum(work.operations for work in launches)) // 2,
        "seconds": tokens * seconds,
        "waits_for": "bytes" if 2 * for_bytes >= seconds else "products",
    }


if __name__ == "__main__":
    sys.exit(main())

"""Predict how many tokens fit beside a large model, and how long a step takes, by arithmetic.

    python -m scripts.predict_serving                  # Llama-3.1-70B on eight H200
    python -m scripts.predict_serving --ranks 4 --ratios 8 --kept 0.8

Nothing is measured. A group of `--ranks` devices holds the model once, its heads split over them;
all `--devices` hold it as often as they can, and share the requests. What weights leave of
`--share` of the memory is cache. Keys and values of 16, 8 and 4 bits are split with their heads. A
compressed row that serves all heads is whole on every device of a group; one that is converted with
as many `head_groups` as the group has devices ("split") is divided with the heads. What makes
latents is on every device, beside its share of the other weights. The time of a step is that of
reading the weights and each request's context once, by the model of the device
(`latents.fit.read_time`), at the data sheet's rates, which no kernel reaches; formats of other
engines are taken to multiply at 16 bits. Traffic between devices is left out. How many channels a
latent keeps is found by calibration and not known here: `--kept` gives a share of them for each
ratio. Last comes the result as one line of JSON.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cacheshrink_hybrid.device_profile import DeviceProfile
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.latents.fit.bits import WIDE_ROW_ALIGNMENT
from cacheshrink_hybrid.latents.fit.read_time import Reading, Work
from cacheshrink_hybrid.methods import LATENT_KINDS
from cacheshrink_hybrid.spec import BYTES_16BIT

from .benchmark import environment, report
from .figures.serving import predicted_serving

KINDS = ("joint", "rotate")
MEMORY = 141e9
"""Bytes of an H200."""


def head_bytes(head_dim: int) -> dict[str, int]:
    """Bytes of one key and one value of a head, by format, as vLLM 0.32 lays them out."""
    return {
        "16 bits": 2 * head_dim * BYTES_16BIT,
        "fp8": 2 * head_dim,
        # 4-bit codes, with a norm of each key, and a scale and an offset of each value.
        "turboquant_4bit_nc": head_dim + 2 + 4,
        # 4-bit floats, with a byte of scale for each 32 of them.
        "ultraquant_4bit": head_dim + 2 * head_dim // 32,
    }


def main(argv: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(argv)
    try:
        profile = DeviceProfile.parse(given.device)
        _check(given)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = [
        _row(given, profile, ranks, name, per_device, (Work(per_device, _products(given, ranks)),))
        for ranks in given.ranks
        for name, per_device in _formats(given, ranks)
    ]
    for ranks in given.ranks:
        for groups in sorted({1, ranks}):
            for ratio, kept in zip(given.ratios, given.kept, strict=True):
                for kind in KINDS:
                    reading = _reading(given, ranks, kind, ratio, kept, groups)
                    launches = reading.launches(profile)
                    name = f"{kind}, {ratio:g}x" + ", split" * (groups > 1)
                    more = _more_weights(given, ranks, kind, kept)
                    rows.append(
                        _row(given, profile, ranks, name, reading.row_bytes, launches, more)
                    )
    unused = ("json", "threads", "seed")
    settings = {key: value for key, value in vars(given).items() if key not in unused}
    result = {"environment": environment(), "settings": settings, "rows": rows}
    print(predicted_serving([result]))
    report(result, given.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", default="Llama-3.1-70B", help="of the shape")
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--heads", type=int, default=64, help="query heads")
    parser.add_argument("--key-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=8192, help="hidden size")
    parser.add_argument("--parameters", type=float, default=70.6e9, help="of the model")
    parser.add_argument("--context", type=int, default=32768, help="tokens of one request")
    parser.add_argument("--requests", type=int, default=64, help="that all devices serve together")
    parser.add_argument("--device", default="H200", help="a DeviceProfile, see convert --help")
    parser.add_argument("--memory", type=float, default=MEMORY, help="bytes of a device")
    parser.add_argument("--share", type=float, default=0.92, help="of the memory that is used")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument(
        "--ranks", type=int, nargs="+", default=[8, 2], help="devices that hold the model once"
    )
    parser.add_argument("--ratios", type=float, nargs="+", default=[4.0, 8.0])
    parser.add_argument(
        "--kept", type=float, nargs="+", default=[0.9, 0.8], help="share of channels, by ratio"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the JSON result here")
    return parser


def _check(given: argparse.Namespace) -> None:
    """Raise `ConfigError` for devices that do not hold the model."""
    faults = []
    if len(given.ratios) != len(given.kept):
        faults.append(
            f"--ratios has {len(given.ratios)} numbers and --kept {len(given.kept)}; give a share "
            "for each ratio"
        )
    for ranks in given.ranks:
        if given.devices % ranks or given.heads % ranks or given.key_heads % ranks:
            faults.append(
                f"--ranks {ranks} does not divide {given.devices} devices, {given.heads} query "
                f"and {given.key_heads} key heads; give one that does"
            )
        elif _cache_bytes(given, ranks) <= 0:
            faults.append(
                f"--ranks {ranks} leaves no cache beside {given.parameters:g} weights on devices "
                f"of {given.memory:g} bytes; give more"
            )
    if faults:
        raise ConfigError("; ".join(faults))


def _cache_bytes(given: argparse.Namespace, ranks: int) -> float:
    """What weights leave of a device."""
    return given.memory * given.share - given.parameters * BYTES_16BIT / ranks


def _formats(given: argparse.Namespace, ranks: int) -> list[tuple[str, int]]:
    """Bytes of a token in one layer on one device, of keys and values that are split by heads."""
    heads = given.key_heads // ranks
    return [(name, heads * size) for name, size in head_bytes(given.head_dim).items()]


def _products(given: argparse.Namespace, ranks: int) -> int:
    """Operations of attention to one token in one layer on one device."""
    return 2 * given.heads // ranks * 2 * given.head_dim


def _reading(
    given: argparse.Namespace, ranks: int, kind: str, ratio: float, kept: float, groups: int
) -> Reading:
    """What one device does with one token: its own heads, on one of as many parts of rows as there
    are groups of heads."""
    width = given.key_heads * given.head_dim
    channels = round(kept * (2 * width if LATENT_KINDS[kind].joint else width) / groups)
    row_bytes = round(2 * width * BYTES_16BIT / ratio / groups)
    return Reading(
        method=kind,
        read_mode=LATENT_KINDS[kind].read_mode or "reconstruct",
        num_heads=given.heads // ranks,
        kv_width=width // ranks,
        head_dim=given.head_dim,
        key_rank=channels,
        value_rank=channels,
        row_bytes=row_bytes if groups == 1 else row_bytes - row_bytes % WIDE_ROW_ALIGNMENT,
    )


def _more_weights(given: argparse.Namespace, ranks: int, kind: str, kept: float) -> float:
    """Bytes of a device's weights beyond its share of the source's: what makes latents of the
    layer's inputs, or of keys and values of all heads where keys are rotated first."""
    both = 2 * given.key_heads * given.head_dim
    channels = round(kept * both)
    more = float(given.hidden * channels)
    if LATENT_KINDS[kind].stores_rotated:
        more = both * channels + given.hidden * both * (1 - 1 / ranks)
    return given.layers * BYTES_16BIT * more


def _row(
    given: argparse.Namespace,
    profile: DeviceProfile,
    ranks: int,
    name: str,
    per_device: int,
    launches: tuple[Work, ...],
    more_weights: float = 0.0,
) -> dict[str, Any]:
    """Of a format on all devices.

    Args:
        per_device: bytes of a token in one layer on one device.
        launches: that read it there.
        more_weights: bytes of a device, beyond its share of the source's.
    """
    groups = given.devices // ranks
    weights = (given.parameters * BYTES_16BIT / ranks + more_weights) / profile.bandwidth
    context = given.layers * given.context * sum(work.seconds(profile) for work in launches)
    room = _cache_bytes(given, ranks) - more_weights
    tokens = groups * max(0, int(room / (given.layers * per_device)))
    return {
        "ranks": ranks,
        "groups": groups,
        "format": name,
        "bytes per token and device": given.layers * per_device,
        "tokens": tokens,
        "fits": tokens >= given.requests * given.context,
        "weights seconds": weights,
        "step seconds": weights + given.requests / groups * context,
    }


if __name__ == "__main__":
    sys.exit(main())

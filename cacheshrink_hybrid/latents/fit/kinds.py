"""Which kind of latent each layer gets: by its loss, or by how fast it is read.

memory   a joint latent everywhere: fewest bytes for a given loss
speed    by layer the kind that a decode step reads fastest; of those that are about as fast, the
         one that loses least
auto     as `speed`, among the kinds whose loss stays close to that of the joint latent

Only layers that rotate their keys have a choice: others are read by absorbing queries into a joint
latent, which is fastest and loses least.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...codecs import RowFormat
from ...config import HEADWISE_METHODS, CompressionConfig
from ...device_profile import DeviceProfile
from ...errors import PlanError
from .bases import LatentFactors, Unit, full_rank_factors
from .bits import CodedFactors, code_channels
from .per_head import per_head_factors
from .read_time import read_operations, read_seconds
from .rotate import rotate_factors, rotated_unit

ABOUT_AS_FAST = 1.25
CLOSE_LOSS = 1.5
"""`auto` gives up at most this factor in a layer's loss for speed."""

FullFactors = tuple[LatentFactors, Unit]


def _joint(unit: Unit) -> FullFactors:
    return full_rank_factors([unit], CompressionConfig(compression_method="joint"))[0], unit


def _per_head(unit: Unit) -> FullFactors:
    return per_head_factors(unit), unit


def _rotate(unit: Unit) -> FullFactors:
    turned = rotated_unit(unit)
    return rotate_factors(turned), turned


LAYOUTS: dict[str, Callable[[Unit], FullFactors]] = {
    "joint": _joint,
    "per_head": _per_head,
    "rotate": _rotate,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """What the time model must know of a module beside its factors: H, and how keys are read when
    they are not stored rotated."""

    num_heads: int
    read_mode: str


def headwise_factors(units: Sequence[Unit], method: str) -> list[FullFactors]:
    """`method` for all modules that rotate their keys, `joint` for the others.

    Raises:
        PlanError: if no module rotates its keys, or one cannot be stored this way.
    """
    if not any(_rotates(unit) for unit in units):
        raise PlanError(
            f"compression_method={method!r} is for layers with rotary position embedding, and this "
            "model has none; use 'joint'"
        )
    return [LAYOUTS[method if _rotates(unit) else "joint"](unit) for unit in units]


def fastest_factors(
    units: Sequence[Unit],
    samples: Sequence[Tensor | None],
    readers: Sequence[Reader],
    widths: Sequence[int],
    budget_bytes: float,
    formats: Sequence[RowFormat],
    objective: str,
    profile: DeviceProfile,
) -> list[FullFactors]:
    """Full-rank factors of the kind that `objective` prefers for each module.

    The joint latents share the budget first; each module then compares the other kinds at the bytes
    that its joint latent got.
    """
    joint = [_joint(unit) for unit in units]
    coded = code_channels(
        [factor for factor, _ in joint], units, samples, widths, budget_bytes, formats=formats
    )
    return [
        _preferred(pair, first, sample, reader, widths, row_format, objective, profile)
        if _rotates(pair[1])
        else pair
        for pair, first, sample, reader, row_format in zip(
            joint, coded, samples, readers, formats, strict=True
        )
    ]


def _preferred(
    joint: FullFactors,
    coded: CodedFactors,
    sample: Tensor | None,
    reader: Reader,
    widths: Sequence[int],
    row_format: RowFormat,
    objective: str,
    profile: DeviceProfile,
) -> FullFactors:
    unit = joint[1]
    assert unit.keys is not None
    row_bytes = coded.row_format.row_bytes(coded.runs)
    candidates = [(joint, coded)]
    for method in HEADWISE_METHODS:
        if method == "rotate" and unit.keys.cannot_rotate is not None:
            continue
        pair = LAYOUTS[method](unit)
        budget = row_bytes * unit.num_layers
        candidates += [
            (pair, result)
            for result in code_channels(
                [pair[0]], [pair[1]], [sample], widths, budget, formats=[row_format]
            )
        ]
    if objective == "auto":
        limit = CLOSE_LOSS * coded.factors.loss
        candidates = [(pair, result) for pair, result in candidates if result.factors.loss <= limit]

    def seconds(result: CodedFactors) -> float:
        assert unit.keys is not None
        factors = result.factors
        operations = read_operations(
            factors.method,
            "rotate" if factors.method == "rotate" else reader.read_mode,
            num_heads=reader.num_heads,
            kv_width=unit.width,
            head_dim=unit.keys.head_dim,
            key_rank=factors.key_rank,
            value_rank=factors.value_up.shape[1],
        )
        return read_seconds(profile, result.row_format.row_bytes(result.runs), operations)

    limit = ABOUT_AS_FAST * min(seconds(result) for _, result in candidates)
    fast = [(pair, result) for pair, result in candidates if seconds(result) <= limit]
    return min(fast, key=lambda candidate: candidate[1].factors.loss)[0]


def _rotates(unit: Unit) -> bool:
    return unit.keys is not None and unit.keys.rotary_dim > 0

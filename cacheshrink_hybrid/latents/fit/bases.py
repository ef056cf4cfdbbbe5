"""Low-rank bases of keys and values: one function per method, from statistics to factors.

joint      one basis for [k; v] of a layer; contains `separate` as a special case
separate   one basis for k and one for v
xkv        as `separate`, with each basis shared by a group of neighbouring layers
auto       by layer the better of `joint` and `separate` at equal bytes; if they lose the same,
           `separate`, because its latent is cheaper to read
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...config import CompressionConfig
from ...errors import PlanError
from ...linalg import (
    WhitenedBasis,
    check_positive_semidefinite,
    damped,
    projection_loss,
    whitened_basis,
)
from ...ranks import Spectrum, fixed_ranks, global_ranks, uniform_ranks
from ...spec import BYTES_16BIT
from .statistics import LatentStatistics

SPREAD_FLOOR = 1e-2
"""Least standard deviation, as a share of the largest, that a channel is scaled by."""
EQUAL_LOSS = 1.01
"""Within 1 % of the joint latent's loss, `auto` takes the separate one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentFactors:
    """y = [k; v] ~ mean + U c with c = E (y - mean), for one attention module.

    Keys are `key_up` times the first Rk channels of c, values `value_up` times the last Rv.

    Attributes:
        method: `joint`, `separate`, `xkv`, `per_head` or `rotate`.
        encoder: E, (R, 2*J*D). Channels have unit variance, or less where they hardly vary.
        key_up: (J*D, Rk).
        value_up: (J*D, Rv).
        mean: (2*J*D,).
        loss: expected loss per layer in the metric's units.
        expected_error: E|y - y^|^2.
        error_bound: upper bound of it from the discarded spectrum: loss / smallest eigenvalue of M.
        relative_error: expected_error over the total variance.
        basis_group: modules with the same number share `key_up` and `value_up`.
        reach: of coded channels, see `RowCodec.encode`, (R,); None if they are not coded.
        frequencies: for `rotate`, the rotary frequency of each pair of key channels, (Rk / 2,); -1
            where a pair is not rotated.
        key_heads: for `per_head`, the head that each key channel belongs to, (Rk,).
    """

    method: str
    encoder: Tensor
    key_up: Tensor
    value_up: Tensor
    mean: Tensor
    loss: float
    expected_error: float
    error_bound: float
    relative_error: float
    basis_group: int | None = None
    reach: Tensor | None = None
    frequencies: Tensor | None = None
    key_heads: Tensor | None = None

    @property
    def key_rank(self) -> int:
        """Rk."""
        return self.key_up.shape[1]

    @property
    def value_offset(self) -> int:
        """First channel that values are made of; 0 in a joint latent."""
        return self.encoder.shape[0] - self.value_up.shape[1]

    @property
    def up(self) -> Tensor:
        """U = [key_up; value_up] over all channels, (2*J*D, R)."""
        return _stacked(self.key_up, self.value_up, self.encoder.shape[0])

    def atoms(self) -> list[Tensor]:
        """Channels that must stay side by side, (n, size) for each part that may be reordered."""
        channels = torch.arange(self.encoder.shape[0])
        if self.method == "joint":
            return [channels[:, None]]
        keys, values = channels[: self.key_rank], channels[self.key_rank :, None]
        if self.key_heads is not None:  # one channel of every head
            return [
                keys[self.key_heads.argsort(stable=True)].view(self.num_key_heads, -1).T,
                values,
            ]
        return [keys.view(-1, 2 if self.method == "rotate" else 1), values]

    @property
    def num_key_heads(self) -> int:
        """J, for `per_head`; 1 otherwise."""
        return 1 if self.key_heads is None else int(self.key_heads.max()) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyShape:
    """How the keys of one module split up.

    Attributes:
        num_heads, head_dim: J and D.
        rotary_dim: rotated channels of a head, pairs (i, i + rotary_dim / 2); 0 for none.
        cannot_rotate: why keys cannot be stored rotated; None if they can.
    """

    num_heads: int
    head_dim: int
    rotary_dim: int = 0
    cannot_rotate: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One attention module to be factorised.

    Attributes:
        covariance, metric: of y = [k; v], (2*J*D, 2*J*D); the metric is positive definite.
        mean: (2*J*D,).
        num_layers: layers that the module serves.
        keys: how its keys split up; needed by `per_head` and `rotate`.
    """

    covariance: Tensor
    metric: Tensor
    mean: Tensor
    num_layers: int
    keys: KeyShape | None = None

    @property
    def width(self) -> int:
        """J * D."""
        return self.mean.shape[0] // 2

    def half(self, half: int) -> tuple[Tensor, Tensor]:
        """Covariance and metric of the keys (0) or of the values (1) alone."""
        part = slice(half * self.width, (half + 1) * self.width)
        return self.covariance[part, part], self.metric[part, part]


def make_unit(
    statistics: LatentStatistics, num_layers: int, damping: float, keys: KeyShape | None = None
) -> Unit:
    """Check and damp the statistics of one module.

    Raises:
        FactorizationError: if covariance or metric is not finite and positive semi-definite.
    """
    metric = check_positive_semidefinite(statistics.metric, "the metric")
    return Unit(
        covariance=check_positive_semidefinite(statistics.covariance, "the covariance"),
        metric=damped(metric, damping),
        mean=statistics.mean,
        num_layers=num_layers,
        keys=keys,
    )


Ranks = Callable[[Sequence[Spectrum]], list[int]]


def _joint(units: Sequence[Unit], ranks: Ranks, config: CompressionConfig) -> list[LatentFactors]:
    bases = [whitened_basis(unit.covariance, unit.metric) for unit in units]
    chosen = ranks([_spectrum(basis, unit) for basis, unit in zip(bases, units, strict=True)])
    return [
        _joint_factors(unit, basis, rank)
        for unit, basis, rank in zip(units, bases, chosen, strict=True)
    ]


def _separate(
    units: Sequence[Unit], ranks: Ranks, config: CompressionConfig
) -> list[LatentFactors]:
    pairs = [_separate_bases(unit) for unit in units]
    spectra = [
        _spectrum(basis, unit) for pair, unit in zip(pairs, units, strict=True) for basis in pair
    ]
    chosen = ranks(spectra)
    return [
        _separate_factors(unit, pair, chosen[2 * i], chosen[2 * i + 1])
        for i, (unit, pair) in enumerate(zip(units, pairs, strict=True))
    ]


def _auto(units: Sequence[Unit], ranks: Ranks, config: CompressionConfig) -> list[LatentFactors]:
    factors = []
    for unit, joint in zip(units, _joint(units, ranks, config), strict=True):
        rank = joint.encoder.shape[0]
        if rank >= 2:
            pair = _separate_bases(unit)
            split = global_ranks(
                [_spectrum(basis, unit) for basis in pair], rank * BYTES_16BIT * unit.num_layers
            )
            separate = _separate_factors(unit, pair, *split)
            total = projection_loss(
                torch.zeros_like(unit.metric), unit.metric, unit.covariance, unit.metric
            )
            if separate.loss <= EQUAL_LOSS * joint.loss + 1e-12 * total:
                factors.append(separate)
                continue
        factors.append(joint)
    return factors


def _xkv(units: Sequence[Unit], ranks: Ranks, config: CompressionConfig) -> list[LatentFactors]:
    skip = config.xkv_skip_early_layers
    if config.keep_early_layers_original:
        skip = 0  # those layers are not among the units
    groups = [units[i : i + 1] for i in range(min(skip, len(units)))]
    size = config.cross_layer_group_size
    groups += [units[i : i + size] for i in range(skip, len(units), size)]
    bases: list[list[WhitenedBasis]] = []
    spectra = []
    for group in groups:
        if len({unit.width for unit in group}) > 1:
            raise PlanError(
                "xkv needs equal key widths within a group; use compression_method='separate'"
            )
        pair = [
            whitened_basis(
                sum(unit.half(half)[0] for unit in group) / len(group),
                sum(unit.half(half)[1] for unit in group) / len(group),
            )
            for half in (0, 1)
        ]
        bases.append(pair)
        layers = sum(unit.num_layers for unit in group)
        spectra += [
            Spectrum(values=basis.spectrum, bytes_per_channel=BYTES_16BIT, num_layers=layers)
            for basis in pair
        ]
    chosen = ranks(spectra)
    factors = []
    for number, (group, pair) in enumerate(zip(groups, bases, strict=True)):
        for unit in group:
            factors.append(
                _shared_factors(unit, pair, chosen[2 * number], chosen[2 * number + 1], number)
            )
    return factors


METHODS: dict[str, Callable[[Sequence[Unit], Ranks, CompressionConfig], list[LatentFactors]]] = {
    "joint": _joint,
    "separate": _separate,
    "xkv": _xkv,
    "auto": _auto,
}


def factorize(
    units: Sequence[Unit], config: CompressionConfig, budget_bytes: float
) -> list[LatentFactors]:
    """Bases for all modules, with ranks that fit into `budget_bytes` per token.

    With `config.d_latent` that rank is used everywhere instead, whatever it costs.

    Raises:
        PlanError: if the budget or the rank cannot be met.
    """

    def ranks(spectra: Sequence[Spectrum]) -> list[int]:
        if config.d_latent is not None:
            return fixed_ranks(spectra, config.d_latent)
        if config.rank_allocation == "uniform":
            return uniform_ranks(spectra, budget_bytes)
        return global_ranks(spectra, budget_bytes)

    return METHODS[config.compression_method](units, ranks, config)


def full_rank_factors(units: Sequence[Unit], config: CompressionConfig) -> list[LatentFactors]:
    """Bases with all their directions, for a later choice of channels; `auto` is `joint` here."""
    method = "joint" if config.compression_method == "auto" else config.compression_method

    def ranks(spectra: Sequence[Spectrum]) -> list[int]:
        return [len(spectrum.values) for spectrum in spectra]

    return METHODS[method](units, ranks, config)


def _stacked(key_up: Tensor, value_up: Tensor, rank: int) -> Tensor:
    width = key_up.shape[0]
    up = torch.zeros(2 * width, rank, dtype=torch.float64)
    up[:width, : key_up.shape[1]] = key_up
    up[width:, rank - value_up.shape[1] :] = value_up
    return up


def _spectrum(basis: WhitenedBasis, unit: Unit) -> Spectrum:
    return Spectrum(
        values=basis.spectrum, bytes_per_channel=BYTES_16BIT, num_layers=unit.num_layers
    )


def _separate_bases(unit: Unit) -> tuple[WhitenedBasis, WhitenedBasis]:
    return whitened_basis(*unit.half(0)), whitened_basis(*unit.half(1))


def _joint_factors(unit: Unit, basis: WhitenedBasis, rank: int) -> LatentFactors:
    up, down = basis.up[:, :rank], basis.down[:rank]
    return scaled_factors(unit, "joint", up[: unit.width], up[unit.width :], down)


def _separate_factors(
    unit: Unit, pair: Sequence[WhitenedBasis], key_rank: int, value_rank: int
) -> LatentFactors:
    key, value = pair
    down = torch.block_diag(key.down[:key_rank], value.down[:value_rank])
    return scaled_factors(unit, "separate", key.up[:, :key_rank], value.up[:, :value_rank], down)


def _shared_factors(
    unit: Unit, pair: Sequence[WhitenedBasis], key_rank: int, value_rank: int, group: int
) -> LatentFactors:
    """The group's bases with the encoder that is best for this layer: E = (U^T M U)^-1 U^T M.

    Channels keep the group's scale, since the bases are shared."""
    ups = [pair[0].up[:, :key_rank], pair[1].up[:, :value_rank]]
    downs = []
    for half, up in enumerate(ups):
        metric = unit.half(half)[1]
        downs.append(torch.linalg.solve(up.T @ metric @ up, up.T @ metric))
    return scaled_factors(unit, "xkv", ups[0], ups[1], torch.block_diag(*downs), group=group)


def scaled_factors(
    unit: Unit,
    method: str,
    key_up: Tensor,
    value_up: Tensor,
    down: Tensor,
    group: int | None = None,
) -> LatentFactors:
    """Factors with channels of unit variance, and their losses.

    Args:
        key_up: (J*D, Rk).
        value_up: (J*D, Rv).
        down: encoder, (R, 2*J*D).
        group: `basis_group`, whose bases keep their scale.
    """
    full_up = _stacked(key_up, value_up, down.shape[0])
    identity = torch.eye(2 * unit.width, dtype=torch.float64)
    loss = max(0.0, projection_loss(full_up, down, unit.covariance, unit.metric))
    error = max(0.0, projection_loss(full_up, down, unit.covariance, identity))
    variance = float(unit.covariance.trace())
    if group is None:
        spread = torch.einsum("rn,nm,rm->r", down, unit.covariance, down).clamp_min(0).sqrt()
        # Errors of the layers before reach all directions alike, so those that hardly vary must
        # not be blown up to unit variance: what comes with the text would be a multiple of it.
        scale = (spread.square() + (SPREAD_FLOOR * spread.max()) ** 2).sqrt().clamp_min(1e-30)
        down = down / scale[:, None]
        key_up = key_up * scale[: key_up.shape[1]]
        value_up = value_up * scale[-value_up.shape[1] :]
    return LatentFactors(
        method=method,
        encoder=down,
        key_up=key_up,
        value_up=value_up,
        mean=unit.mean,
        loss=loss,
        expected_error=error,
        error_bound=loss / float(torch.linalg.eigvalsh(unit.metric)[0]),
        relative_error=error / variance if variance > 0 else 0.0,
        basis_group=group,
    )

"""The nouns of fitting: a module's moments, its bases up to their ranks, and finished factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...linalg import check_positive_semidefinite, damped, projection_loss
from ...methods import LATENT_KINDS
from ...ranks import Spectrum
from .statistics import LatentStatistics

SPREAD_FLOOR = 1e-2
"""Least standard deviation, as a share of the largest, that a channel is scaled by."""


SPLIT_DAMPING = 1e-2
"""Share of the damping that a metric of split keys gets: what rotation alone can do is a small
difference of large numbers, to which damping adds, most where keys have a large mean."""
FIRST_DAMPING = 1e-3
"""Damping of a metric by which gradients of first tokens are measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyShape:
    """How the keys of one module split up.

    Attributes:
        num_heads, head_dim: J and D.
        rotary_dim: rotated channels of a head; 0 for none.
        neighbours: they turn in pairs (2i, 2i + 1), not (i, i + rotary_dim / 2).
        block_angles: by which the pairs are rotated at the places of a block of slots, a power of
            two, (places, rotary_dim / 2), float64; None where keys cannot be stored rotated.
        cannot_rotate: why they cannot; None if they can.
        cannot_decouple: why they cannot be split into a rotary key and the rest; None if they can.
    """

    num_heads: int
    head_dim: int
    rotary_dim: int = 0
    neighbours: bool = False
    block_angles: Tensor | None = None
    cannot_rotate: str | None = None
    cannot_decouple: str | None = None

    @property
    def pairs(self) -> Tensor:
        """Channels of a head that turn together, (2, rotary_dim / 2)."""
        channels = torch.arange(self.rotary_dim)
        return channels.view(-1, 2).T if self.neighbours else channels.view(2, -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One attention module to be factorised.

    Attributes:
        covariance, metric: of y = [k; v], (2*J*D, 2*J*D); the metric is positive definite.
        mean: (2*J*D,).
        num_layers: layers that the module serves.
        keys: how its keys split up; needed where heads have channels of their own or rotate.
        split_metric: of [k; v; u], positive definite, see `LatentStatistics`; None without.
    """

    covariance: Tensor
    metric: Tensor
    mean: Tensor
    num_layers: int
    keys: KeyShape | None = None
    split_metric: Tensor | None = None

    @property
    def key_width(self) -> int:
        """J * D; without `keys` half of y."""
        if self.keys is None:
            return self.mean.shape[0] // 2
        return self.keys.num_heads * self.keys.head_dim

    def half(self, half: int) -> tuple[Tensor, Tensor]:
        """Covariance and metric of the keys (0) or of the values (1) alone."""
        part = slice(self.key_width, None) if half else slice(self.key_width)
        return self.covariance[part, part], self.metric[part, part]


def make_unit(
    statistics: LatentStatistics, num_layers: int, damping: float, keys: KeyShape | None = None
) -> Unit:
    """Check and damp the statistics of one module.

    Raises:
        FactorizationError: if covariance or metric is not finite and positive semi-definite.
    """
    metric = check_positive_semidefinite(statistics.metric, "the metric")
    split = statistics.split_metric
    if split is not None:
        split = check_positive_semidefinite(split, "the metric of split keys")
        split = damped(split, SPLIT_DAMPING * damping)
    covariance = check_positive_semidefinite(statistics.covariance, "the covariance")
    metric = damped(metric, damping)
    if statistics.first is not None:
        covariance = _with_first(covariance, statistics, metric if split is None else split)
    return Unit(
        covariance=covariance,
        metric=metric,
        mean=statistics.mean,
        num_layers=num_layers,
        keys=keys,
        split_metric=split,
    )


def _with_first(covariance: Tensor, statistics: LatentStatistics, metric: Tensor) -> Tensor:
    """Second moment of all tokens about the mean of those that are not first, with first tokens as
    many times as errors in them cost more than in others, by this metric of the others."""
    first, mean = statistics.first, statistics.mean
    assert first is not None
    likely = damped(metric, FIRST_DAMPING)  # few first tokens are seen, in few directions
    dearer = float(torch.linalg.solve(likely, first.metric).trace()) / len(metric)
    across = torch.outer(first.mean, mean)
    about = first.second_moment - across - across.T + torch.outer(mean, mean)
    return (1 - first.share) * covariance + first.share * dearer * about


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentFactors:
    """y = [k; v] ~ mean + U c with c = E (y - mean), for one attention module.

    Keys are `key_up` times the first Rk channels of c, values `value_up` times the last Rv.

    Attributes:
        method: one of `LATENT_KINDS`.
        encoder: E, (R, 2*J*D). Channels have unit variance, or less where they hardly vary.
        key_up: (J*D, Rk).
        value_up: (J*D, Rv).
        mean: (2*J*D,).
        loss: expected loss per layer in the metric's units.
        expected_error: E|y - y^|^2.
        error_bound: upper bound of it from the discarded spectrum: loss / smallest eigenvalue of M.
        relative_error: expected_error over the total variance.
        basis_group: modules with the same number share `key_up` and `value_up`.
        costs: of errors in the channels, relative to each other, (R,); None if they are not coded.
        key_heads: where heads have channels of their own, the head that each key channel belongs
            to, (Rk,).
        channel_groups: where groups of heads have latents of their own, the group that each channel
            belongs to, (R,).
        rotary_frequencies: of a rotary key, whose pairs are the first channels, real parts before
            imaginary ones: the source's frequency of each pair. Then `mean` is zero, errors of keys
            are those at distance 0, and `error_bound` is `expected_error`.
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
    costs: Tensor | None = None
    key_heads: Tensor | None = None
    channel_groups: Tensor | None = None
    rotary_frequencies: tuple[int, ...] = ()

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
        owners = self.owners
        if LATENT_KINDS[self.method].joint:
            return [_one_of_each(owners, 0)]
        keys, values = owners.tensor_split((self.key_rank,))
        return [_one_of_each(keys, 0), _one_of_each(values, self.key_rank)]

    @property
    def owners(self) -> Tensor:
        """Who each channel belongs to, (R,): a head, a group of heads, or 0 for all heads."""
        found = torch.zeros(self.encoder.shape[0], dtype=torch.int64)
        if self.channel_groups is not None:
            found = self.channel_groups.clone()
        if self.key_heads is not None:
            found[: self.key_rank] = self.key_heads
        return found

    @property
    def num_groups(self) -> int:
        """Groups of heads with latents of their own; 1 where all heads share one."""
        return 1 if self.channel_groups is None else int(self.channel_groups.max()) + 1

    @property
    def num_key_heads(self) -> int:
        """J, where heads have channels of their own; 1 otherwise."""
        return 1 if self.key_heads is None else int(self.key_heads.max()) + 1


@dataclass(frozen=True, slots=True)
class Bases:
    """Bases of some modules, whose ranks are still to be chosen.

    Attributes:
        units: the modules, with moments as this kind of latent sees them.
        spectra: of the bases whose ranks are to be chosen, which these modules share; none where
            all directions stay, for a later choice of channels.
        at: from the ranks, one per spectrum, to the factors of each module.
    """

    units: tuple[Unit, ...]
    spectra: tuple[Spectrum, ...]
    at: Callable[[Sequence[int]], list[LatentFactors]]

    @classmethod
    def unranked(cls, unit: Unit, factors: Callable[[Unit], LatentFactors]) -> Bases:
        """Of one module whose directions all stay.

        Args:
            factors: all of them, of this unit.
        """
        return cls((unit,), (), lambda ranks: [factors(unit)])

    def at_full_rank(self) -> list[tuple[LatentFactors, Unit]]:
        """Factors with all directions, for a later choice of channels, each with its unit."""
        factors = self.at([len(spectrum.values) for spectrum in self.spectra])
        return list(zip(factors, self.units, strict=True))


Fit = Callable[..., list[Bases]]
"""What a row of `LATENT_KINDS` names: a function of a list of units, and by name of the settings
that its row lists, which gives `Bases` that cover the units in order."""


def scaled_factors(
    unit: Unit,
    method: str,
    key_up: Tensor,
    value_up: Tensor,
    down: Tensor,
    group: int | None = None,
    *,
    key_heads: Tensor | None = None,
) -> LatentFactors:
    """Factors with channels of unit variance as they are stored, and their losses.

    Args:
        key_up: (J*D, Rk).
        value_up: (J*D, Rv).
        down: encoder, (R, 2*J*D).
        group: `basis_group`, whose bases keep their scale.
        key_heads: of the key channels, see `LatentFactors`.
    """
    full_up = _stacked(key_up, value_up, down.shape[0])
    losses = _losses(full_up, down, unit)
    if group is None:
        scale = unit_scales(torch.einsum("rn,nm,rm->r", down, unit.covariance, down))
        down = down / scale[:, None]
        key_up = key_up * scale[: key_up.shape[1]]
        value_up = value_up * scale[-value_up.shape[1] :]
    return LatentFactors(
        method=method,
        encoder=down,
        key_up=key_up,
        value_up=value_up,
        mean=unit.mean,
        basis_group=group,
        key_heads=key_heads,
        **losses,
    )


def with_losses(factors: LatentFactors, unit: Unit) -> LatentFactors:
    """Factors with the losses that they have on a module."""
    return replace(factors, **_losses(factors.up, factors.encoder, unit))


def _losses(up: Tensor, down: Tensor, unit: Unit) -> dict[str, Any]:
    """Of what a basis (2*J*D, R) and an encoder (R, 2*J*D) leave out."""
    identity = torch.eye(len(unit.mean), dtype=torch.float64)
    loss = max(0.0, projection_loss(up, down, unit.covariance, unit.metric))
    error = max(0.0, projection_loss(up, down, unit.covariance, identity))
    variance = float(unit.covariance.trace())
    return {
        "loss": loss,
        "expected_error": error,
        "error_bound": loss / float(torch.linalg.eigvalsh(unit.metric)[0]),
        "relative_error": error / variance if variance > 0 else 0.0,
    }


def _one_of_each(owners: Tensor, first: int) -> Tensor:
    """Channels (n, owners), in each row one of every owner, of neighbours from `first` on."""
    count = int(owners.max()) + 1 if len(owners) else 1
    return (first + owners.argsort(stable=True)).view(count, -1).T


def unit_scales(variance: Tensor) -> Tensor:
    """What channels of these variances (R,) are divided by for unit variance, or less of those that
    hardly vary."""
    spread = variance.clamp_min(0).sqrt()
    # Errors of the layers before reach all directions alike, so those that hardly vary must
    # not be blown up to unit variance: what comes with the text would be a multiple of it.
    return (spread.square() + (SPREAD_FLOOR * spread.max()) ** 2).sqrt().clamp_min(1e-30)


def _stacked(key_up: Tensor, value_up: Tensor, rank: int) -> Tensor:
    width = key_up.shape[0]
    up = torch.zeros(width + value_up.shape[0], rank, dtype=torch.float64)
    up[:width, : key_up.shape[1]] = key_up
    up[width:, rank - value_up.shape[1] :] = value_up
    return up

"""One rotary key for all heads, and the rest of the keys with the values in one latent: MLA.

With pairs of key channels as complex numbers, K_f in C^J over the key heads at frequency w_f, a
score at distance d is Re sum_f q_f^* K_f e^(i w_f d). Complex-linear maps commute with rotation: so
some u^H K_f may rotate for all heads together, once queries have absorbed u: the rotary key r.
All else meets queries without rotation. What is due of a token is z = [k; v; 0]: keys that rotate,
values, and keys that do not. Made of it are [B r; V c; A c] with a latent c. Let M be the metric of
errors in z (`Unit.split_metric`), t the channels of keys that turn, and n all others. For a given
rotary key the best unrotated part n* is linear in y = [k; v], and so is what no latent can mend:

    n* = n + M_nn^-1 M_nt (k_t - B r),     S = M_tt - M_tn M_nn^-1 M_nt
    loss = (k_t - B r)^T S (k_t - B r) + (n' - n*)^T M_nn (n' - n*)

S is what rotation alone can do: next to nothing at frequencies that hardly turn within the text.
The rotary key takes the largest directions of S^1/2 E[K_f K_f^H] S^1/2, and the latent is the
whitened basis of n*. MLA has no biases, so that means are directions like any other: moments are
about zero.

References: DeepSeek-V2 (arXiv 2405.04434) for the format; TransMLA (arXiv 2502.07864) for rotations
among the heads of a frequency.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ...errors import PlanError
from ...linalg import projection_loss, whitened_basis
from ...ranks import Spectrum
from ...spec import BYTES_16BIT
from .bases import joint_bases
from .factors import Bases, KeyShape, LatentFactors, Unit, unit_scales

METHOD = "decoupled_rope"
EIGHTHS = (1, 2, 3, 4, 5, 6, 7)
"""Widths of the rotary key that are tried, in eighths of a head's rotated channels; then whole
heads."""

RISK = 2.0
"""How much more than second order says the choice of a width takes the loss to be that no latent
mends: what lies beyond is larger there than of a latent's directions. Found by trying two small
models."""
UNSEEN = 1e-9
"""Mean square of what the text never shows, as a share of that of all channels."""
ROUNDING = 1e-9
"""Differences of losses, as a share of losing everything, that say nothing."""

Ranks = Callable[[Sequence[Spectrum]], list[int]]


def decoupled(units: Sequence[Unit], *, qk_rope_head_dim: int) -> list[Bases]:
    """Bases with a rotary key of one width and the same frequencies in all modules that rotate
    their keys, and of a joint latent in the others.

    Raises:
        PlanError: modules that cannot be decoupled, or a width that they do not have.
    """
    return _bases(units, _splits(units), qk_rope_head_dim)


def at_best_width(
    units: Sequence[Unit], qk_rope_head_dim: int | None, ranks: Ranks
) -> list[LatentFactors]:
    """Factors with the width of the rotary key that loses least within a budget.

    Args:
        qk_rope_head_dim: the width instead; None for the best.
        ranks: from spectra to ranks that the budget allows.

    Raises:
        PlanError: as `decoupled`, or a budget that no width meets.
    """
    splits = _splits(units)
    widths = _widths(splits) if qk_rope_head_dim is None else [qk_rope_head_dim]
    found: list[list[LatentFactors]] = []
    refusal: PlanError | None = None
    for width in widths:
        try:
            bases = _bases(units, splits, width)
            chosen = ranks([spectrum for one in bases for spectrum in one.spectra])
            found.append([one.at([rank])[0] for one, rank in zip(bases, chosen, strict=True)])
        except PlanError as error:
            refusal = error
    if not found:
        assert refusal is not None
        raise refusal
    losses = [
        sum(
            (factor.loss + (RISK - 1) * _never(split, factor)) * unit.num_layers
            for factor, split, unit in zip(factors, splits, units, strict=True)
        )
        for factors in found
    ]
    nothing = sum(float(torch.sum(unit.metric * unit.covariance)) for unit in units)
    limit = min(losses) + ROUNDING * nothing
    # Of those that lose the same, the one that depends least on what calibration has seen.
    return next(
        factors
        for factors, loss in reversed(list(zip(found, losses, strict=True)))
        if loss <= limit
    )


def _never(split: _Split | None, factors: LatentFactors) -> float:
    return 0.0 if split is None else split.never(torch.tensor(factors.rotary_frequencies))


def _splits(units: Sequence[Unit]) -> list[_Split | None]:
    """Of each module; None for those that do not rotate their keys."""
    splits = [_Split(unit) if unit.keys and unit.keys.rotary_dim else None for unit in units]
    shapes = {tuple(split.gains.shape) for split in splits if split is not None}
    if not shapes:
        raise PlanError(
            f"compression_method={METHOD!r} is for layers with rotary position embedding, and this "
            "model has none; use 'joint', which such layers read as MLA does"
        )
    if len(shapes) > 1:
        raise PlanError(
            f"layers rotate {sorted(shapes)} (frequencies, key heads), and one rotary key is due "
            "for all; use another compression_method"
        )
    return splits


def _widths(splits: Sequence[_Split | None]) -> list[int]:
    """Widths of the rotary key to try, up to one that leaves nothing unrotated."""
    frequencies, heads = next(split.gains.shape for split in splits if split is not None)
    parts = {2 * max(1, frequencies * eighths // 8) for eighths in EIGHTHS}
    return sorted(parts | {2 * frequencies * head for head in range(1, heads + 1)})


def _bases(
    units: Sequence[Unit], splits: Sequence[_Split | None], qk_rope_head_dim: int
) -> list[Bases]:
    rotary = _frequencies(units, splits, qk_rope_head_dim)
    return [
        joint_bases(unit, "joint") if split is None else split.bases(rotary)
        for unit, split in zip(units, splits, strict=True)
    ]


def _frequencies(
    units: Sequence[Unit], splits: Sequence[_Split | None], qk_rope_head_dim: int
) -> Tensor:
    """The frequency of each pair of the rotary key, ascending: those that rotation alone can do
    most for, in all layers together. A frequency comes as often as it has components there."""
    gains = sum(
        unit.num_layers * split.gains
        for unit, split in zip(units, splits, strict=True)
        if split is not None
    )
    assert isinstance(gains, Tensor)
    pairs, odd = divmod(qk_rope_head_dim, 2)
    if odd or not 1 <= pairs <= gains.numel():
        raise PlanError(
            f"qk_rope_head_dim={qk_rope_head_dim} is not a number of channel pairs from 2 to "
            f"{2 * gains.numel()}, all that these layers rotate; give an even number of these"
        )
    best = gains.flatten().argsort(descending=True, stable=True)[:pairs]
    return (best // gains.shape[1]).sort().values


class _Split:
    """One module whose keys are split into what turns and what does not.

    Attributes:
        gains: what rotation alone can do for each component of each frequency, (F, J), descending
            along the components.
    """

    def __init__(self, unit: Unit) -> None:
        keys = _that_decouple(unit)
        J, D, self.F = keys.num_heads, keys.head_dim, keys.rotary_dim // 2
        self.unit, self.keys = unit, keys
        self.channels = torch.arange(J * D).view(J, D)[:, keys.pairs]  # (J, 2, F)
        moment = unit.covariance + torch.outer(unit.mean, unit.mean)
        # What the text never shows comes last, but before what no key or value is made of.
        unseen = UNSEEN * moment.diagonal().mean()
        self.second = moment + unseen * torch.eye(len(moment), dtype=torch.float64)
        metric, turning = unit.split_metric, self.channels.flatten()
        assert metric is not None
        across = metric[J * D :, turning]
        self.metric = metric[J * D :, J * D :]
        self.mending = torch.linalg.solve(self.metric, across)
        self.alone = metric[turning][:, turning] - across.T @ self.mending
        seen = 2 * self._by_frequency(self.second[turning][:, turning])
        found = _whitened(seen, self._by_frequency(self.alone))
        self.up, self.down, self.gains = found

    def _by_frequency(self, matrix: Tensor) -> Tensor:
        """Mean over phases of a matrix over the turning channels, complex, (F, J, J): of x^T A x
        with the channels of a frequency turned together."""
        sizes = len(self.channels), 2, self.F
        blocks = matrix.view(*sizes, *sizes).diagonal(dim1=2, dim2=5).movedim(-1, 0)
        even = blocks[:, :, 0, :, 0] + blocks[:, :, 1, :, 1]
        odd = blocks[:, :, 1, :, 0] - blocks[:, :, 0, :, 1]
        return 0.5 * torch.complex(even, odd)

    def never(self, frequencies: Tensor) -> float:
        """Loss of a rotary key of these frequencies, ascending, that no latent mends."""
        left, turning = self._left(frequencies), self.channels.flatten()
        moment = self.second[turning][:, turning]
        return max(0.0, float(torch.sum((left @ moment @ left.T) * self.alone)))

    def _left(self, frequencies: Tensor) -> Tensor:
        """What a rotary key leaves of the channels that turn, as a matrix over them."""
        down, up = self._rotary_key(frequencies)
        turning = self.channels.flatten()
        whole = torch.eye(len(turning), dtype=torch.float64)
        return whole - up[turning] @ down[:, turning]

    def bases(self, frequencies: Tensor) -> Bases:
        """A rotary key of these frequencies, ascending, and a latent for the rest."""
        unit, width = self.unit, self.unit.key_width
        turning = self.channels.flatten()
        key_down, key_up = self._rotary_key(frequencies)
        wanted = torch.zeros(2 * width, 2 * width, dtype=torch.float64)  # [v; k without] of [k; v]
        values, still = torch.arange(width), torch.ones(width, dtype=torch.bool)
        still[turning] = False
        wanted[values, width + values] = 1.0
        wanted[width + values[still], values[still]] = 1.0
        wanted[:, turning] += self.mending @ self._left(frequencies)
        never = self.never(frequencies)
        basis = whitened_basis(wanted @ self.second @ wanted.T, self.metric)

        def at(ranks: Sequence[int]) -> list[LatentFactors]:
            rotary, rank = len(key_down), ranks[0] - len(key_down)
            if rank < 1:
                raise PlanError(
                    f"qk_rope_head_dim={rotary} leaves none of {ranks[0]} channels for the latent; "
                    "lower it or the compression_ratio"
                )
            down = basis.down[:rank] @ wanted
            # The same as the basis has, but zero without rounding where no key is to be made.
            variance = basis.spectrum[:rank].clamp_min(torch.finfo(torch.float64).tiny)
            key_part = wanted[width:] @ self.second @ down.T / variance
            loss = never + float(basis.spectrum[rank:].sum())
            encoder = torch.cat([torch.cat([key_down, torch.zeros_like(key_down)], 1), down])
            return [
                self._factors(
                    frequencies, encoder, key_up, basis.up[:width, :rank], key_part, loss
                ),
            ]

        # The rotary key comes before every direction of the latent.
        first = torch.full((len(key_down),), torch.inf, dtype=torch.float64)
        spectrum = Spectrum(
            values=torch.cat([first, basis.spectrum[: 2 * width - len(first)]]),  # others are zero
            bytes_per_channel=BYTES_16BIT,
            num_layers=unit.num_layers,
        )
        return Bases((unit,), (spectrum,), at)

    def _rotary_key(self, frequencies: Tensor) -> tuple[Tensor, Tensor]:
        """From keys to the rotary key and back, (Dr, J*D) and (J*D, Dr): first the real parts of
        its pairs, then the imaginary ones."""
        component = torch.cat(
            [torch.arange(int(n)) for n in frequencies.unique(return_counts=True)[1]]
        )
        to_real = partial(
            _real_rows, channels=self.channels, frequencies=frequencies, width=self.unit.key_width
        )
        down = to_real(self.down[frequencies, component])
        up = to_real(self.up[frequencies, :, component].conj())
        return down, up.T

    def _factors(
        self,
        frequencies: Tensor,
        encoder: Tensor,
        rotary_up: Tensor,
        value_up: Tensor,
        key_up: Tensor,
        loss: float,
    ) -> LatentFactors:
        scales = unit_scales(torch.einsum("rn,nm,rm->r", encoder, self.second, encoder))
        pairs = len(frequencies)
        both = scales[: 2 * pairs].view(2, pairs).square().mean(0).sqrt()  # the pair turns
        scales[: 2 * pairs] = torch.cat([both, both])
        key_up = torch.cat([rotary_up, key_up], 1) * scales
        value_up, encoder = value_up * scales[2 * pairs :], encoder / scales[:, None]
        both_up = torch.cat([key_up, torch.cat([torch.zeros_like(rotary_up), value_up], 1)])
        identity = torch.eye(2 * self.unit.key_width, dtype=torch.float64)
        error = max(0.0, projection_loss(both_up, encoder, self.second, identity))
        return LatentFactors(
            method=METHOD,
            encoder=encoder,
            key_up=key_up,
            value_up=value_up,
            mean=torch.zeros_like(self.unit.mean),
            loss=loss,
            expected_error=error,
            error_bound=error,
            relative_error=error / float(self.second.trace()),
            rotary_frequencies=tuple(frequencies.tolist()),
        )


def split_errors(factors: LatentFactors, vectors: Tensor) -> Tensor:
    """What is left of z = [k; v; 0] (n, 3*J*D) of vectors [k; v] (n, 2*J*D)."""
    latents, rotary = vectors @ factors.encoder.T, 2 * len(factors.rotary_frequencies)
    turning = latents[:, :rotary] @ factors.key_up[:, :rotary].T
    still = latents[:, rotary:] @ factors.key_up[:, rotary:].T
    keys, values = vectors.chunk(2, dim=1)
    return torch.cat(
        [keys - turning, values - latents[:, rotary:] @ factors.value_up.T, -still], dim=1
    )


def _real_rows(rows: Tensor, channels: Tensor, frequencies: Tensor, width: int) -> Tensor:
    """Complex rows (n, J) at their frequencies (n,) as a real matrix (2 n, width) over the channels
    (J, 2, F) of keys: first what gives real parts, then what gives imaginary ones."""
    real, imaginary = channels[:, :, frequencies].permute(1, 2, 0)  # (n, J) each
    made = torch.zeros(2, len(rows), width, dtype=torch.float64)
    made[0].scatter_(1, real, rows.real).scatter_(1, imaginary, -rows.imag)
    made[1].scatter_(1, real, rows.imag).scatter_(1, imaginary, rows.real)
    return made.flatten(0, 1)


def _whitened(moment: Tensor, metric: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `whitened_basis`, of Hermitian matrices (F, J, J): up, down (F, J, J), spectra (F, J)."""
    values, vectors = torch.linalg.eigh(metric)
    roots = values.clamp_min(0.0).sqrt()[:, None]
    root = (vectors * roots) @ vectors.mH
    inverse = (vectors / roots) @ vectors.mH
    values, vectors = torch.linalg.eigh(root @ moment @ root)
    values, vectors = values.flip(-1).clamp_min(0.0), vectors.flip(-1)
    # An eigenvector's phase is arbitrary; fix it so that equal inputs give equal checkpoints.
    pivot = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    vectors = vectors * (pivot.conj() / pivot.abs())
    return inverse @ vectors, vectors.mH @ root, values


def _that_decouple(unit: Unit) -> KeyShape:
    assert unit.keys is not None
    if unit.keys.cannot_decouple is not None:
        raise PlanError(
            f"keys cannot be decoupled: {unit.keys.cannot_decouple}; use another compression_method"
        )
    if unit.split_metric is None:
        raise PlanError(
            f"compression_method={METHOD!r} needs what its own calibration finds; take statistics "
            "with a CompressionConfig of this method"
        )
    return unit.keys

"""Finding the gain of a row (`gains` says by what)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .gains import COARSE, LARGEST_CODE, OCTAVES, STEPS, TRIED, UNIT_CODE, gain_table
from .levels import (
    EDGE_REACH,
    EDGE_STEPS,
    UNIFORM_BITS,
    UNIFORM_CLIP,
    UNIFORM_STEP,
    levels_of,
    normal_distortion,
    outermost_level,
    step_codes,
)
from .row_layout import Run
from .tables import table

AT_ONCE = 2**18
"""Elements of an intermediate result, at the most: rows beyond go in parts."""


class GainSearch:
    """Finds the gains of rows with these coded runs.

    Args:
        runs: coded ones, in channel order.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = tuple(runs)

        def by_channel(of_width) -> Tensor:
            # As a list first: also within a graph, where lengths must not be those of a tensor.
            values = [of_width(run.bits) for run in runs for _ in range(run.channels)]
            return torch.tensor(values, device="cpu")

        self._outermost = by_channel(outermost_level)
        self._distortions = by_channel(normal_distortion)

    def codes(self, latent: Tensor, costs: Tensor | None) -> Tensor:
        """Gain codes (N,), int64, of latents (N, R), float32 and finite.

        Args:
            costs: of a squared error in each channel, (R,); None for 1.
        """
        rows_at_once = max(1, AT_ONCE // (len(TRIED) * latent.shape[1]))
        if len(latent) <= rows_at_once:
            return self._codes(latent, costs)
        return torch.cat([self._codes(part, costs) for part in latent.split(rows_at_once)])

    def _codes(self, latent: Tensor, costs: Tensor | None) -> Tensor:
        parts = [latent[:, run.at_channel] for run in self.runs]
        channels = torch.cat(parts, dim=-1)
        if costs is None:
            weights = torch.ones_like(self._outermost, device=latent.device)
        else:
            weights = torch.cat([costs.float()[run.at_channel] for run in self.runs])
        likely = self._likely(channels.abs(), weights)
        tried = torch.tensor(TRIED, device=latent.device)[:, None] + likely
        tried = tried.clamp(0, LARGEST_CODE)  # (tried, N)
        gains = gain_table(latent.device)[tried][..., None]
        errors, first = torch.zeros(tried.shape, device=latent.device), 0
        for run, part in zip(self.runs, parts, strict=True):
            weight = weights[first : first + run.channels]
            error = rounded_levels(part / gains, run.bits) * gains - part
            errors = errors + (error.square() * weight).sum(-1)
            first += run.channels
        return tried.gather(0, errors.argmin(dim=0)[None])[0]

    def _likely(self, magnitudes: Tensor, weights: Tensor) -> Tensor:
        """Codes (N,) where the formula of `gains` is least, of those `COARSE` apart, for magnitudes
        (N, Rc) of all coded channels."""
        outermost = self._outermost.to(magnitudes.device)
        within = (self._distortions.to(magnitudes.device) * weights).sum()
        reach = (magnitudes / outermost).amax(dim=-1)
        highest = (STEPS * reach.log2()).ceil() + UNIT_CODE
        steps = torch.arange(OCTAVES * STEPS // COARSE, device=magnitudes.device)
        codes = highest.clamp(0, LARGEST_CODE).long() - COARSE * steps[:, None]
        codes = codes.clamp_min(0)
        gains = gain_table(magnitudes.device)[codes]
        beyond = (magnitudes - gains[..., None] * outermost).clamp_min_(0.0).square_()
        formula = within * gains.square() + (beyond * weights).sum(-1)
        return codes.gather(0, formula.argmin(dim=0)[None])[0]


def codes_of(x: Tensor, bits: int) -> Tensor:
    """Index of the level of each element, uint8."""
    if bits == UNIFORM_BITS:
        position = (x / (2 * UNIFORM_CLIP) + 0.5) * 256
        return position.clamp_(0, 255).to(torch.uint8)
    codes = code_table(bits, x.device).index_select(0, _steps(x))
    return codes.view(x.shape)


def rounded_levels(x: Tensor, bits: int) -> Tensor:
    """The level of each element, float32."""
    if bits == UNIFORM_BITS:
        return codes_of(x, bits).float().mul_(UNIFORM_STEP).add_(0.5 * UNIFORM_STEP - UNIFORM_CLIP)
    return _step_levels(bits, x.device).index_select(0, _steps(x)).view(x.shape)


def _steps(x: Tensor) -> Tensor:
    """Which step of `levels.EDGE_STEPS` each element lies in, flat, int32."""
    last = 2 * EDGE_REACH * EDGE_STEPS - 1
    return (x * EDGE_STEPS + EDGE_REACH * EDGE_STEPS).clamp_(0, last).flatten().int()


@table
def code_table(bits: int, device: torch.device) -> Tensor:
    return step_codes(bits).to(device)


@table
def _step_levels(bits: int, device: torch.device) -> Tensor:
    return levels_of(bits)[step_codes(bits).long()].to(device, torch.float32)


@table
def level_table(bits: int, device: torch.device) -> Tensor:
    """Levels of a width, ascending, (2**bits,), float32."""
    return levels_of(bits).to(device, torch.float32)

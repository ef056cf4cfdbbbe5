"""Ranks, codes and replay lengths of all recurrent layers under one byte budget.

Loss is counted in the units of the metric, for what is cut off and for what rounding costs, so both
compare across layers and with each other: for every way of coding the heads the ranks are found
greedily, and the way with the smallest sum is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...codecs.state_format import ROW_ALIGNMENT, StateFormat, StateSegment
from ...config import CompressionConfig
from ...errors import PlanError
from ...methods import STATE_METHODS
from ...ranks import Spectrum, global_ranks
from ...spec import BYTES_16BIT, LayerSpec
from ..kinds import MIXER_KINDS, MixerKind
from ..plan import FULL, StatePlan, ring_bytes_per_token
from .bases import StateBasis, state_loss
from .observe import StateStatistics

RELATIVE_ERROR = {
    "float32": 0.0,
    "float16": 2.1e-4,
    "bfloat16": 1.7e-3,
    "int8": 5.2e-3,
    "float8": 2.6e-2,
}
"""Root mean square error of one coding, relative to the root mean square of a channel."""
RANKS = 16
"""How many ranks a state can have, so that its rows stay regular: multiples of N / 16."""
REPLAY_LENGTHS = (1, 2, 4, 8, 16)
MEMORY_QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)


@dataclass(frozen=True, slots=True)
class StateFactors:
    """Bases of one layer at its ranks: L and R, (G, N, r) each, zero beyond a group's rank."""

    write: Tensor
    read: Tensor


@dataclass(frozen=True, slots=True)
class StateUnit:
    """One recurrent layer, ready for allocation.

    Attributes:
        layer: its spec.
        statistics: None without calibration; then all channels are kept.
        method: a row of `STATE_METHODS`, or `FULL`.
        bases: one per group.
        quantum: ranks come in multiples of this.
    """

    layer: LayerSpec
    statistics: StateStatistics | None
    method: str
    bases: tuple[StateBasis, ...]
    quantum: int

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """(M, P, N, G)."""
        spec = self.layer.state
        assert spec is not None
        return spec.num_heads, spec.head_dim, spec.state_size, spec.num_groups

    def conv_channels(self, ranks: Sequence[int]) -> int:
        """Convolution channels that are left at these ranks."""
        spec = self.layer.state
        assert spec is not None
        dropped = sum(spec.state_size - rank for rank in ranks)
        return spec.conv_channels - self.folded_columns * dropped

    @property
    def kind(self) -> MixerKind:
        assert self.layer.state is not None
        return MIXER_KINDS[self.layer.state.kind]

    @property
    def folded_columns(self) -> int:
        """Convolution channels that go with every dropped state channel."""
        return self.kind.folded_columns.get(self.method, 0)


def make_state_unit(
    layer: LayerSpec, statistics: StateStatistics | None, config: CompressionConfig
) -> StateUnit:
    """Bases of one layer by the method that the config and the kind of its mixer give.

    Raises:
        PlanError: a method that this kind of mixer does not allow.
    """
    spec = layer.state
    assert spec is not None
    kind = MIXER_KINDS[spec.kind]
    method = kind.method(config.state_method)
    if method not in kind.methods:
        raise PlanError(
            f"state_method={method!r} cannot be used with the {spec.kind} mixer of layer "
            f"{layer.layer_idx}: its recurrence commutes with {' and '.join(kind.methods)} only; "
            "leave state_method out"
        )
    most = max(1, spec.state_size // RANKS)
    quantum = next(step for step in range(most, 0, -1) if spec.state_size % step == 0)
    if statistics is None:
        return StateUnit(layer, None, FULL, (), spec.state_size)
    basis = STATE_METHODS[method].function()
    bases = [basis(statistics.group(g)) for g in range(spec.num_groups)]
    return StateUnit(layer, statistics, method, tuple(bases), quantum)


def plan_states(
    units: Sequence[StateUnit], config: CompressionConfig, budget_bytes: float
) -> tuple[list[StatePlan], list[StateFactors | None]]:
    """Plans and factors of all units within `budget_bytes` per sequence.

    Raises:
        PlanError: if the budget is below what the least possible ranks take.
    """
    best: tuple[float, list[StatePlan]] | None = None
    refusal: PlanError | None = None
    for codes in _codings(units, config):
        for replay in REPLAY_LENGTHS if config.replay_length is None else (config.replay_length,):
            try:
                plans = _plans(units, codes, replay, budget_bytes)
            except PlanError as error:
                refusal = error
                continue
            loss = sum(plan.predicted_loss + plan.rounding_loss for plan in plans)
            if best is None or loss < best[0]:
                best = (loss, plans)
    if best is None:
        assert refusal is not None
        raise refusal
    return best[1], [_factors(unit, plan) for unit, plan in zip(units, best[1], strict=True)]


def _codings(
    units: Sequence[StateUnit], config: CompressionConfig
) -> list[Callable[[StateUnit], list[str]]]:
    """Ways of choosing a code for every head: one for all, or by how long a head remembers."""
    if config.state_dtype != "auto":
        return [lambda unit: [config.state_dtype] * unit.sizes[0]]
    known = [unit.statistics.memory for unit in units if unit.statistics is not None]
    if not known:
        return [lambda unit: ["float16"] * unit.sizes[0]]
    thresholds = torch.quantile(
        torch.cat(known), torch.tensor(MEMORY_QUANTILES[1:-1], dtype=torch.float64)
    )

    def by_memory(limit: float) -> Callable[[StateUnit], list[str]]:
        def codes(unit: StateUnit) -> list[str]:
            assert unit.statistics is not None
            memory = unit.statistics.memory.tolist()
            return ["int8" if value <= limit else "float16" for value in memory]

        return codes

    return [by_memory(limit) for limit in (0.0, *thresholds.tolist(), math.inf)]


def _plans(
    units: Sequence[StateUnit],
    codes_of: Callable[[StateUnit], list[str]],
    replay: int,
    budget_bytes: float,
) -> list[StatePlan]:
    codes = [codes_of(unit) for unit in units]
    fixed = sum(_fixed_bytes(unit, code, replay) for unit, code in zip(units, codes, strict=True))
    spectra = []
    for unit, code in zip(units, codes, strict=True):
        for g in range(unit.sizes[3]):
            spectra.append(
                Spectrum(
                    values=_gains(unit, g),
                    bytes_per_channel=unit.quantum * _channel_bytes(unit, code, g, replay),
                )
            )
    slack = len(units) * ROW_ALIGNMENT  # rows are padded
    try:
        steps = global_ranks(spectra, budget_bytes - fixed - slack)
    except PlanError as error:
        least = fixed + sum(spectrum.step_bytes for spectrum in spectra)
        raise PlanError(
            f"the states may take {budget_bytes:.0f} bytes per sequence, but convolution columns, "
            f"replay ring (replay_length={replay}) and the least possible ranks take {least}; "
            "lower state_ratio, shorten replay_length"
            + (
                ""
                if units[0].statistics is not None
                else ", or calibrate, without which no channel can be left out"
            )
        ) from error
    plans, at = [], 0
    for unit, code in zip(units, codes, strict=True):
        G = unit.sizes[3]
        ranks = tuple(step * unit.quantum for step in steps[at : at + G])
        at += G
        plans.append(_plan(unit, code, ranks, replay))
    return plans


def _gains(unit: StateUnit, group: int) -> Tensor:
    """What each further run of `quantum` channels saves, descending."""
    N = unit.sizes[2]
    if not unit.bases:
        return torch.ones(1, dtype=torch.float64)
    loss = unit.bases[group].loss[:: unit.quantum]
    assert len(loss) == N // unit.quantum + 1
    gains = loss[:-1] - loss[1:]
    # The greedy takes runs in order and needs them descending; a run that saves more than the one
    # before it is counted low.
    return torch.cummin(gains, dim=0).values


def _head_bytes(head_dim: int, code: str) -> tuple[int, int]:
    """Bytes of a head's codes and scales: those at any rank, and those of each channel."""
    at_one, at_two = (
        StateFormat(head_dim, (StateSegment(heads=(0,), rank=rank, code=code),)).num_bytes
        for rank in (1, 2)
    )
    return 2 * at_one - at_two, at_two - at_one


def _fixed_bytes(unit: StateUnit, codes: Sequence[str], replay: int) -> int:
    """Bytes of one unit beside those of its channels."""
    M, P, _, G = unit.sizes
    spec = unit.layer.state
    assert spec is not None
    heads = sum(_head_bytes(P, code)[0] for code in codes)
    row = -(-heads // ROW_ALIGNMENT) * ROW_ALIGNMENT
    nothing = (0,) * G
    ring = (replay - 1) * ring_bytes_per_token(unit.kind, M, P, nothing)
    return row + ring + unit.conv_channels(nothing) * (spec.conv_kernel - 1) * BYTES_16BIT


def _channel_bytes(unit: StateUnit, codes: Sequence[str], group: int, replay: int) -> int:
    """Bytes of one more channel of one group."""
    M, P, _, G = unit.sizes
    heads = range(group * (M // G), (group + 1) * (M // G))
    size = sum(_head_bytes(P, codes[head])[1] for head in heads)
    spec = unit.layer.state
    assert spec is not None
    columns = unit.folded_columns * (spec.conv_kernel - 1)
    return size + (replay - 1 + columns) * BYTES_16BIT


def _plan(unit: StateUnit, codes: Sequence[str], ranks: tuple[int, ...], replay: int) -> StatePlan:
    M, P, N, G = unit.sizes
    spec = unit.layer.state
    assert spec is not None
    by_class: dict[tuple[str, int], list[int]] = {}
    for head in range(M):
        by_class.setdefault((codes[head], ranks[head // (M // G)]), []).append(head)
    segments = tuple(
        StateSegment(heads=tuple(heads), rank=rank, code=code)
        for (code, rank), heads in by_class.items()
    )
    full = min(ranks) == N
    channels = None
    if not full and STATE_METHODS[unit.method].selects:
        chosen = [basis.channels for basis in unit.bases]
        channels = tuple(
            tuple(order[:rank]) for order, rank in zip(chosen, ranks, strict=True) if order
        )
    statistics = unit.statistics
    cut = error = rounding = 0.0
    if statistics is not None:
        for g, basis in enumerate(unit.bases):
            cut += float(basis.loss[ranks[g]])
            if ranks[g] < N:
                pair = basis.pair(ranks[g])
                error += state_loss(statistics.reads[g], statistics.group_states[g], *pair)
        error /= max(statistics.outputs, torch.finfo(torch.float64).tiny)
        rounding = _rounding_loss(unit, codes, ranks, replay)
    return StatePlan(
        layer_idx=unit.layer.layer_idx,
        kind=spec.kind,
        method=FULL if full else unit.method,
        state_size=N,
        head_dim=P,
        segments=segments,
        ranks=ranks,
        channels=channels,
        replay_length=replay,
        conv_channels=unit.conv_channels(ranks),
        conv_kernel=spec.conv_kernel,
        ring_bytes_per_token=ring_bytes_per_token(unit.kind, M, P, ranks),
        predicted_loss=cut,
        rounding_loss=rounding,
        relative_error=error,
    )


def _rounding_loss(
    unit: StateUnit, codes: Sequence[str], ranks: tuple[int, ...], replay: int
) -> float:
    """Expected loss of coding: what is added every `replay` tokens, decaying as the head does."""
    statistics = unit.statistics
    assert statistics is not None
    M, P, N, G = unit.sizes
    total = 0.0
    for g, basis in enumerate(unit.bases):
        eye = torch.eye(N, dtype=torch.float64)
        write, read = (eye, eye) if ranks[g] == N else basis.pair(ranks[g])
        reads = ((statistics.reads[g] @ read) * read).sum(0)
        for head in range(g * (M // G), (g + 1) * (M // G)):
            variance = ((statistics.states[head] @ write) * write).sum(0) / P
            memory = max(float(statistics.memory[head]), 1e-3)
            repeats = 1.0 / (1.0 - math.exp(-2.0 * replay / memory))
            noise = RELATIVE_ERROR[codes[head]] ** 2 * repeats
            total += noise * float(statistics.output_costs[head] * torch.sum(variance * reads))
    return total


def _factors(unit: StateUnit, plan: StatePlan) -> StateFactors | None:
    if plan.narrowing is None:
        return None
    write = torch.zeros(len(plan.ranks), plan.state_size, plan.width, dtype=torch.float64)
    read = torch.zeros_like(write)
    for g, (basis, rank) in enumerate(zip(unit.bases, plan.ranks, strict=True)):
        write[g, :, :rank], read[g, :, :rank] = basis.pair(rank)
    return StateFactors(write, read)

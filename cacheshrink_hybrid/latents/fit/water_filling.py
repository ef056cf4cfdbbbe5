"""Reverse water-filling: a width for every run of channels of all layers, under one byte budget.

Starting from nothing, the step that saves most loss per byte is taken while the budget lasts: along
the lower convex hull of each run's losses, so steps that pay late are not missed. Bytes are those
of the finished rows, with gains and padding.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...codecs import RowFormat
from ...errors import PlanError


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelGroup:
    """A run of channels that share a width.

    Attributes:
        module: index of the attention module.
        part: of its row; runs of one width and part are one run.
        channels: their positions in the module's full-rank latent, by falling loss.
        losses: expected loss by width in bits, summed over channels and layers.
    """

    module: int
    part: int
    channels: Tensor
    losses: dict[int, float]


def water_fill(
    groups: Sequence[ChannelGroup],
    widths: Sequence[int],
    budget_bytes: float,
    formats: Sequence[RowFormat],
    num_layers: Sequence[int],
    row_parts: Sequence[int],
) -> list[int]:
    """Width of each group, 0 for dropped, by falling loss per byte along its convex hull.

    Args:
        formats, num_layers, row_parts: of each module; see `RowFormat.row_bytes` for the last.
    """
    chosen = [0] * len(groups)
    sizes = [len(group.channels) for group in groups]
    runs: list[Counter[tuple[int, int]]] = [Counter() for _ in formats]
    """Of each module, channels by part and width."""

    def choose(i: int, bits: int) -> None:
        own, part = runs[groups[i].module], groups[i].part
        own[part, chosen[i]] -= sizes[i]
        own[part, bits] += sizes[i]
        chosen[i] = bits

    def module_bytes(module: int) -> int:
        stored = [(n, bits) for (_, bits), n in runs[module].items() if bits and n]
        return formats[module].row_bytes(stored, row_parts[module]) * num_layers[module]

    started: set[int] = set()
    for i, group in enumerate(groups):  # every module keeps at least one run
        if group.module not in started:
            started.add(group.module)
            choose(i, widths[0])
    spent = [module_bytes(module) for module in range(len(formats))]
    if sum(spent) > budget_bytes:
        raise PlanError(
            f"the budget of {budget_bytes:.1f} bytes per token is below the {sum(spent)} bytes "
            "that one run of channels per latent takes; lower compression_ratio, or raise "
            "budget_bytes"
        )
    total = sum(spent)
    heap: list[tuple[float, int, int]] = []
    refused: set[tuple[int, int]] = set()

    def push(i: int) -> None:
        group = groups[i]
        steps = []
        for wider in widths:
            if wider > chosen[i] and (i, wider) not in refused:
                gain = group.losses[chosen[i]] - group.losses[wider]
                more = sizes[i] * (wider - chosen[i]) * num_layers[group.module]
                if gain > 0:
                    steps.append((-gain / more, i, wider))
        if steps:
            heapq.heappush(heap, min(steps))

    for i in range(len(groups)):
        push(i)
    while heap:
        _, i, wider = heapq.heappop(heap)
        module, before = groups[i].module, chosen[i]
        choose(i, wider)
        due = module_bytes(module)
        if total + due - spent[module] <= budget_bytes:
            total += due - spent[module]
            spent[module] = due
        else:
            choose(i, before)
            refused.add((i, wider))  # with what is left, perhaps a smaller step
        push(i)
    return chosen

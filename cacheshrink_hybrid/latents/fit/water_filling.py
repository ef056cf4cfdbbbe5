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
) -> list[int]:
    """Width of each group, 0 for dropped, by falling loss per byte along its convex hull."""
    members = [
        [i for i, group in enumerate(groups) if group.module == module]
        for module in range(len(formats))
    ]
    chosen = [0] * len(groups)
    for ids in members:  # every module keeps at least one run
        chosen[ids[0]] = widths[0]

    def module_bytes(module: int) -> int:
        runs: Counter[tuple[int, int]] = Counter()
        for i in members[module]:
            if chosen[i]:
                runs[groups[i].part, chosen[i]] += len(groups[i].channels)
        sizes = [(channels, bits) for (_, bits), channels in runs.items()]
        return formats[module].row_bytes(sizes) * num_layers[module]

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
                more = len(group.channels) * (wider - chosen[i]) * num_layers[group.module]
                if gain > 0:
                    steps.append((-gain / more, i, wider))
        if steps:
            heapq.heappush(heap, min(steps))

    for i in range(len(groups)):
        push(i)
    while heap:
        _, i, wider = heapq.heappop(heap)
        module, before = groups[i].module, chosen[i]
        chosen[i] = wider
        due = module_bytes(module)
        if total + due - spent[module] <= budget_bytes:
            total += due - spent[module]
            spent[module] = due
        else:
            chosen[i] = before
            refused.add((i, wider))  # with what is left, perhaps a smaller step
        push(i)
    return chosen

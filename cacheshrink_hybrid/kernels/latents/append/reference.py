"""`latent_append` in plain torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ....codecs.gains import COARSE, LARGEST_CODE, LOST, OCTAVES, STEPS, TRIED, UNIT_CODE
from ....codecs.levels import (
    EDGE_REACH,
    EDGE_STEPS,
    UNIFORM_CLIP,
    edges_of,
    levels_of,
    normal_distortion,
    outermost_level,
)
from ....codecs.row_layout import Kind, RowLayout, Run
from ..paged_rows import PagedRows
from ..row_reference import gain_of, planes_of_run

# Devices differ in the NaN that they make; these are the quiet ones of the standard.
NAN_BYTES = {
    Kind.FLOAT32: (0x00, 0x00, 0xC0, 0x7F),
    Kind.FLOAT16: (0x00, 0x7E),
    Kind.BFLOAT16: (0xC0, 0x7F),
    Kind.E4M3: (0x7F,),
    Kind.E5M2: (0x7F,),
}


def latent_append_reference(
    latent: Tensor,
    rows: PagedRows,
    slot_mapping: Tensor,
    *,
    center: Tensor | None,
    costs: Tensor | None,
) -> None:
    """See `latent_append`."""
    kept = slot_mapping >= 0
    x = latent[kept].float()
    if center is not None:
        x = x - center.float()
    stored = encode_rows(x, rows.layout, costs)
    slots = slot_mapping[kept]
    first = slots // rows.frame_tokens * rows.frame_bytes + rows.layer_offset
    first = first + slots % rows.frame_tokens * rows.layout.row_bytes
    at = first[:, None] + torch.arange(rows.layout.row_bytes, device=latent.device)
    rows.arena[at] = stored


def encode_rows(x: Tensor, layout: RowLayout, costs: Tensor | None) -> Tensor:
    """Rows (N, row_bytes), uint8, of latents (N, R), float32."""
    finite = torch.isfinite(x).all(dim=-1)
    x = torch.where(finite[:, None], x, 0.0)
    stored = x.new_zeros((x.shape[0], layout.row_bytes), dtype=torch.uint8)
    gain = x.new_ones(x.shape[0])
    if layout.gain_byte is not None:
        code = _gain_codes(x, [run for run in layout.runs if run.kind.coded], costs)
        gain = gain_of(code)
        stored[:, layout.gain_byte] = torch.where(finite, code, LOST).to(torch.uint8)
    for run in layout.runs:
        part = x[:, run.at_channel]
        if run.kind.coded:
            stored[:, run.at_byte] = planes_of_run(_codes(part / gain[:, None], run), run)
            continue
        limit = torch.finfo(run.kind.dtype).max
        part = part.clamp(-limit, limit).to(run.kind.dtype).view(torch.uint8)
        lost = torch.tensor(NAN_BYTES[run.kind], dtype=torch.uint8, device=x.device)
        lost = lost.repeat(run.channels)
        stored[:, run.at_byte] = torch.where(finite[:, None], part, lost)
    return stored


def _codes(x: Tensor, run: Run) -> Tensor:
    """Codes of numbers that are divided by their gains, int64."""
    if run.kind is Kind.UNIFORM8:
        position = (x / (2 * UNIFORM_CLIP) + 0.5) * 256
        return position.floor().clamp(0, 255).long()
    edges = edges_of(run.bits).to(x.device, torch.float32)
    # In float32 what lies just below an edge rounds to it, as where steps are counted.
    step, edges = (places * EDGE_STEPS + EDGE_REACH * EDGE_STEPS for places in (x, edges))
    return torch.bucketize(step, edges, right=True)


def _gain_codes(x: Tensor, runs: list[Run], costs: Tensor | None) -> Tensor:
    """Gain codes (N,), int64, of finite latents (N, R)."""
    costs = x.new_ones(x.shape[1]) if costs is None else costs.float()

    def formula(code: Tensor) -> Tensor:
        total, gain = torch.zeros_like(x[:, 0]), gain_of(code)
        for run in runs:
            weight = costs[run.at_channel]
            limit = outermost_level(run.bits) * gain[:, None]
            beyond = (x[:, run.at_channel].abs() - limit).clamp_min(0.0)
            total = total + normal_distortion(run.bits) * weight.sum() * gain.square()
            total = total + (weight * beyond.square()).sum(dim=-1)
        return total

    def error(code: Tensor) -> Tensor:
        total, gain = torch.zeros_like(x[:, 0]), gain_of(code)[:, None]
        for run in runs:
            part = x[:, run.at_channel]
            levels = levels_of(run.bits).to(x.device, torch.float32)
            difference = levels[_codes(part / gain, run)] * gain - part
            total = total + (costs[run.at_channel] * difference.square()).sum(dim=-1)
        return total

    def least(of: Callable[[Tensor], Tensor], codes: list[Tensor]) -> Tensor:
        codes = [code.clamp(0, LARGEST_CODE) for code in codes]
        first = torch.stack([of(code) for code in codes]).argmin(dim=0)
        return torch.stack(codes).gather(0, first[None])[0]

    reach = torch.stack(
        [x[:, run.at_channel].abs().amax(dim=-1) / outermost_level(run.bits) for run in runs]
    )
    highest = (STEPS * reach.amax(dim=0).log2()).ceil() + UNIT_CODE
    highest = highest.clamp(0, LARGEST_CODE).long()
    likely = least(formula, [highest - down for down in range(0, OCTAVES * STEPS, COARSE)])
    return least(error, [likely + nearby for nearby in TRIED])

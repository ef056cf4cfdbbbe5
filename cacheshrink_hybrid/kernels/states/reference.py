"""Reading and writing states in plain torch: the definition that kernels are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from ...codecs.state_format import (
    ELEMENTS,
    HALF_EXPONENT,
    HALF_ZERO,
    LARGEST_FLOAT8,
    LARGEST_INT8,
    MAX_EXPONENT,
    SCALE_ZERO,
    STEPS_PER_OCTAVE,
    StateFormat,
)
from .pages import StatePages


def read_states(pages: StatePages, table: Tensor) -> Tensor:
    """States (B, M, P, width), float32; zeros for sequences whose first frame is -1, and beyond a
    segment's rank."""
    states, B = pages.format, table.shape[0]
    stored = pages.arena[_addresses(pages, table)]
    state = torch.zeros(B, states.num_heads, states.head_dim, states.width, device=table.device)
    for segment, at_codes, at_scales in states.places:
        m, P, r = len(segment.heads), states.head_dim, segment.rank
        codes = stored[:, at_codes].contiguous().view(ELEMENTS[segment.code])
        part = decode_state(
            codes.view(B, m, P, r), stored[:, at_scales], segment.code, states.block
        )
        state[:, list(segment.heads), :, :r] = part
    return torch.where((table[:, 0] >= 0)[:, None, None, None], state, 0.0)


def write_states(state: Tensor, pages: StatePages, table: Tensor) -> None:
    """Code states (B, M, P, width) and write them, but for sequences whose first frame is -1."""
    kept = table[:, 0] >= 0
    if not bool(kept.any()):
        return
    state, states = state[kept], pages.format
    stored = torch.empty(len(state), states.num_bytes, dtype=torch.uint8, device=table.device)
    for segment, at_codes, at_scales in states.places:
        part = state[:, list(segment.heads), :, : segment.rank].float()
        codes, scales = encode_state(part, segment.code, states.block)
        stored[:, at_codes] = codes.reshape(len(state), -1).contiguous().view(torch.uint8)
        if scales is not None:
            stored[:, at_scales] = scales.reshape(len(state), -1)
    pages.arena[_addresses(pages, table[kept])] = stored


def within_rank(state: Tensor, states: StateFormat) -> Tensor:
    """States (B, M, P, width) with zeros beyond the rank of each head."""
    channel = torch.arange(states.width, device=state.device)
    rank = torch.zeros(states.num_heads, dtype=torch.long, device=state.device)
    for segment in states.segments:
        rank[list(segment.heads)] = segment.rank
    return torch.where((channel < rank[:, None])[:, None], state, 0.0)


def _addresses(pages: StatePages, table: Tensor) -> Tensor:
    """Byte in the arena of each byte of the states, (B, num_bytes)."""
    return pages.place.addresses(table, pages.format.num_bytes, pages.frame_bytes)


def encode_state(state: Tensor, code: str, block: int) -> tuple[Tensor, Tensor | None]:
    """Codes and scale bytes of states (B, m, P, r)."""
    if code in ("float32", "bfloat16"):
        return state.to(ELEMENTS[code]), None
    if code == "float16":
        largest = state.abs().amax(dim=(-2, -1), keepdim=True)
        exponent = torch.frexp(largest).exponent.clamp(-MAX_EXPONENT, MAX_EXPONENT)
        scaled = torch.ldexp(state, HALF_EXPONENT - exponent)
        return scaled.half(), (exponent + HALF_ZERO).to(torch.uint8)
    if code == "int8":
        blocks = state.unflatten(-2, (-1, block))
        scale, factor = _scale_bytes(blocks.abs().amax(dim=-2, keepdim=True), LARGEST_INT8)
        codes = (blocks * factor).round().clamp(-LARGEST_INT8, LARGEST_INT8)
        return codes.to(torch.int8), scale
    scale, factor = _scale_bytes(state.abs().amax(dim=-2, keepdim=True), LARGEST_FLOAT8)
    codes = (state * factor).clamp(-LARGEST_FLOAT8, LARGEST_FLOAT8)
    return codes.to(torch.float8_e4m3fn), scale


def decode_state(codes: Tensor, scales: Tensor, code: str, block: int) -> Tensor:
    """States (B, m, P, r), float32, of codes of that shape and bytes of scales, (B, n)."""
    B, m, P, r = codes.shape
    values = codes.float()
    if code in ("float32", "bfloat16"):
        return values
    if code == "float16":
        exponent = scales.reshape(B, m, 1, 1).int() - (HALF_ZERO + HALF_EXPONENT)
        return torch.ldexp(values, exponent)
    factor = torch.exp2((scales.float() - SCALE_ZERO) / STEPS_PER_OCTAVE)
    if code == "int8":
        blocks = values.reshape(B, m, -1, block, r) * factor.reshape(B, m, -1, 1, r)
        return blocks.reshape(B, m, P, r)
    return values * factor.reshape(B, m, 1, r)


def _scale_bytes(largest: Tensor, top: float) -> tuple[Tensor, Tensor]:
    """The smallest scale byte that keeps `largest` within `top`, and what to multiply with."""
    wanted = STEPS_PER_OCTAVE * torch.log2(largest / top) + SCALE_ZERO
    scale = torch.ceil(wanted).clamp(0, 255)  # log2(0) is -inf, which is step 0
    return scale.to(torch.uint8), torch.exp2((SCALE_ZERO - scale) / STEPS_PER_OCTAVE)

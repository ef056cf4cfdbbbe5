"""Reading and writing states in plain torch: the definition that kernels are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from .pages import (
    CODE_BYTES,
    EXPONENT_ZERO,
    HALF_EXPONENT,
    LARGEST_FLOAT8,
    LARGEST_INT8,
    MAX_EXPONENT,
    SCALE_ZERO,
    StatePages,
    StateSegment,
)


def read_states(pages: StatePages, table: Tensor) -> Tensor:
    """States (B, M, P, width), float32; zeros for sequences whose first frame is -1, and beyond a
    segment's rank."""
    stored = pages.arena[_addresses(pages, table)]
    B = table.shape[0]
    state = torch.zeros(B, pages.num_heads, pages.head_dim, pages.width, device=table.device)
    for segment, (codes, scales) in zip(pages.segments, pages.starts, strict=True):
        num_bytes = pages.num_codes(segment) * CODE_BYTES[segment.code]
        part = decode_state(
            stored[:, codes : codes + num_bytes],
            stored[:, scales : scales + pages.num_scales(segment)],
            segment,
            pages,
        )
        state[:, list(segment.heads), :, : segment.rank] = part
    return torch.where((table[:, 0] >= 0)[:, None, None, None], state, 0.0)


def write_states(state: Tensor, pages: StatePages, table: Tensor) -> None:
    """Code states (B, M, P, width) and write them, but for sequences whose first frame is -1."""
    kept = table[:, 0] >= 0
    if not bool(kept.any()):
        return
    state = state[kept]
    codes, scales = [], []
    for segment in pages.segments:
        code, scale = encode_state(
            state[:, list(segment.heads), :, : segment.rank].float(), segment, pages
        )
        codes.append(code.reshape(len(state), -1).contiguous().view(torch.uint8))
        if scale is not None:
            scales.append(scale.reshape(len(state), -1))
    pages.arena[_addresses(pages, table[kept])] = torch.cat([*codes, *scales], dim=1)


def within_rank(state: Tensor, pages: StatePages) -> Tensor:
    """States (B, M, P, width) with zeros beyond the rank of each head."""
    channel = torch.arange(pages.width, device=state.device)
    rank = torch.zeros(pages.num_heads, dtype=torch.long, device=state.device)
    for segment in pages.segments:
        rank[list(segment.heads)] = segment.rank
    return torch.where((channel < rank[:, None])[:, None], state, 0.0)


def _addresses(pages: StatePages, table: Tensor) -> Tensor:
    """Byte in the arena of each byte of the states, (B, num_bytes)."""
    byte = torch.arange(pages.num_bytes, device=table.device)
    frame, offset = pages.place.locate(byte, pages.frame_bytes)
    return table.clamp_min(0).long()[:, frame] * pages.frame_bytes + offset


def encode_state(
    state: Tensor, segment: StateSegment, pages: StatePages
) -> tuple[Tensor, Tensor | None]:
    """Codes and scale bytes of states (B, m, P, r)."""
    if segment.code == "float32":
        return state, None
    if segment.code == "bfloat16":
        return state.bfloat16(), None
    if segment.code == "float16":
        largest = state.abs().amax(dim=(-2, -1), keepdim=True)
        exponent = torch.frexp(largest).exponent.clamp(-MAX_EXPONENT, MAX_EXPONENT)
        scaled = torch.ldexp(state, HALF_EXPONENT - exponent)
        return scaled.half(), (exponent + EXPONENT_ZERO).to(torch.uint8)
    if segment.code == "int8":
        blocks = state.unflatten(-2, (-1, pages.block))
        scale, factor = _scale_bytes(
            blocks.abs().amax(dim=-2, keepdim=True), LARGEST_INT8, pages.steps_per_octave
        )
        codes = (blocks * factor).round().clamp(-LARGEST_INT8, LARGEST_INT8)
        return codes.to(torch.int8), scale
    scale, factor = _scale_bytes(
        state.abs().amax(dim=-2, keepdim=True), LARGEST_FLOAT8, pages.steps_per_octave
    )
    codes = (state * factor).clamp(-LARGEST_FLOAT8, LARGEST_FLOAT8)
    return codes.to(torch.float8_e4m3fn), scale


def decode_state(codes: Tensor, scales: Tensor, segment: StateSegment, pages: StatePages) -> Tensor:
    """States (B, m, P, r) of bytes of codes and of scales, (B, n) each."""
    B, m, P, r = codes.shape[0], len(segment.heads), pages.head_dim, segment.rank
    codes = codes.contiguous()
    size = (B, m, P, r)
    if segment.code == "float32":
        return codes.view(torch.float32).reshape(size)
    if segment.code == "bfloat16":
        return codes.view(torch.bfloat16).reshape(size).float()
    if segment.code == "float16":
        exponent = scales.reshape(B, m, 1, 1).int() - (EXPONENT_ZERO + HALF_EXPONENT)
        return torch.ldexp(codes.view(torch.float16).reshape(size).float(), exponent)
    if segment.code == "int8":
        blocks = codes.view(torch.int8).reshape(B, m, -1, pages.block, r).float()
        return (blocks * _scales(scales, pages.steps_per_octave).reshape(B, m, -1, 1, r)).reshape(
            size
        )
    values = codes.view(torch.float8_e4m3fn).reshape(size).float()
    return values * _scales(scales, pages.steps_per_octave).reshape(B, m, 1, r)


def _scale_bytes(largest: Tensor, top: float, steps: int) -> tuple[Tensor, Tensor]:
    """The smallest scale byte that keeps `largest` within `top`, and what to multiply with."""
    wanted = steps * torch.log2(largest / top) + SCALE_ZERO
    scale = torch.ceil(wanted).clamp(0, 255)  # log2(0) is -inf, which is step 0
    return scale.to(torch.uint8), torch.exp2((SCALE_ZERO - scale) / steps)


def _scales(scales: Tensor, steps: int) -> Tensor:
    return torch.exp2((scales.float() - SCALE_ZERO) / steps)

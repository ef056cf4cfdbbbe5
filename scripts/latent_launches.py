"""Launches on paper of the kernels that read and write latents, for `kernel_cases`."""

from __future__ import annotations

from typing import Any

import torch

from cacheshrink_hybrid.codecs import RowFormat
from cacheshrink_hybrid.codecs.row_layout import Kind, RowLayout
from cacheshrink_hybrid.kernels.latents.append.kernel import latent_append_triton
from cacheshrink_hybrid.kernels.latents.decode import BlockUp, KeyUp, LatentRead
from cacheshrink_hybrid.kernels.latents.decode.kernel import latent_decode_triton
from cacheshrink_hybrid.kernels.latents.decode.tiles import Tiles
from cacheshrink_hybrid.kernels.latents.decode.two_passes import latent_decode_in_two_passes
from cacheshrink_hybrid.kernels.latents.paged_rows import PagedRows

from .compile_kernels import meta
from .kernel_workloads import MIXED_AT_4X

SMALL_AT_4X = [(48, 6), (96, 5), (128, 4), (80, 3)]
"""Of 3 key heads of 64."""
LAYOUTS = {
    "float32": RowLayout.of_runs([(128, Kind.FLOAT32)], alignment=16),
    "float16": RowLayout.of_runs([(128, Kind.FLOAT16)], alignment=16),
    "bfloat16": RowLayout.of_runs([(128, Kind.BFLOAT16)], alignment=16),
    "e4m3": RowLayout.of_runs([(128, Kind.E4M3)], alignment=16),
    "8": RowFormat(alignment=16).layout([(128, 8)]),
    "4": RowFormat(alignment=16).layout([(128, 4)]),
    "6": RowFormat(alignment=16).layout([(128, 6)]),
    "mixed": RowFormat(alignment=16).layout([(32, 6), (32, 5), (64, 4), (32, 3), (32, 2)]),
    "float16-512": RowLayout.of_runs([(512, Kind.FLOAT16)], alignment=16),
    "8-512": RowFormat(alignment=16).layout([(512, 8)]),
    "4-512": RowFormat(alignment=16).layout([(512, 4)]),
    "mixed-1840": RowFormat(alignment=16).layout(MIXED_AT_4X),
    "mixed-512": RowFormat(alignment=16).layout([(64, 6), (64, 5), (128, 4), (128, 3), (128, 2)]),
}


def rows_of(layout: RowLayout, *, frame_tokens: int = 64) -> PagedRows:
    frame_bytes = -(-frame_tokens * layout.row_bytes // 256) * 256
    return PagedRows(
        arena=meta(1024 * frame_bytes, dtype=torch.uint8),
        layout=layout,
        frame_bytes=frame_bytes,
        frame_tokens=frame_tokens,
    )


def absorb(
    name: str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    heads: int = 32,
    frame_tokens: int = 64,
):
    """Decoding with absorbed queries, all of the row as keys and as values."""

    def run() -> None:
        rows = rows_of(LAYOUTS[name], frame_tokens=frame_tokens)
        rank = rows.layout.num_channels
        latent_decode_triton(
            meta(8, 1, heads, rank, dtype=dtype),
            rows,
            meta(8, 512, dtype=torch.int32),
            meta(8, dtype=torch.int32),
            read=LatentRead(key_rank=rank, value_rank=rank, scale=0.1),
            offset=None,
            query_lens=None,
            first_slots=None,
            num_splits=None,
        )

    return run


# Odd addresses, every kind of number, runs of 8: what tiny models have.
NARROW = RowLayout.of_runs(
    [
        (8, Kind.LEVELS5),
        (4, Kind.LEVELS3),
        (8, Kind.FLOAT16),
        (8, Kind.BFLOAT16),
        (8, Kind.E4M3),
        (8, Kind.E5M2),
        (20, Kind.UNIFORM8),
    ]
)
# Runs of 4, and no gains: what tiny models have at few bytes.
PLAIN = RowFormat(gains=False).layout([(4, 4), (20, 1)])


def everything(*, rebuilt: bool, query_dtype: torch.dtype = torch.float16):
    """Narrow rows with every option: windows, softcap, ragged queries."""

    def run() -> None:
        key_up = None
        if rebuilt:
            angles = meta(4096, 4, dtype=torch.float32)
            key_up = KeyUp(
                weight=meta(2, 20, 22),
                bias=meta(2, 20),
                cos=angles,
                sin=angles,
                norm_weight=meta(20, dtype=torch.float32),
                norm_epsilon=1e-6,
                per_head=True,
            )
        latent_decode_triton(
            meta(2, 5, 6, 20 if rebuilt else 44, dtype=query_dtype),
            rows_of(NARROW, frame_tokens=8),
            meta(2, 512, dtype=torch.int32),
            meta(2, dtype=torch.int32),
            read=LatentRead(
                key_rank=44,
                value_rank=20 if rebuilt else 56,
                scale=0.1,
                window=100,
                softcap=30.0,
                key_up=key_up,
            ),
            offset=None if rebuilt else meta(2, 5, 6, dtype=torch.float32),
            query_lens=meta(2, dtype=torch.int32),
            first_slots=meta(2, dtype=torch.int32),
            num_splits=1,
        )

    return run


def append_narrow() -> None:
    rows = rows_of(NARROW, frame_tokens=8)
    channels = NARROW.num_channels
    latent = meta(64, channels, dtype=torch.float32)
    slots = meta(64, dtype=torch.int64)
    latent_append_triton(latent, rows, slots, center=meta(channels), costs=meta(channels))


def append_plain() -> None:
    latent, slots = meta(64, PLAIN.num_channels, dtype=torch.float32), meta(64, dtype=torch.int64)
    latent_append_triton(latent, rows_of(PLAIN, frame_tokens=8), slots, center=None, costs=None)


def decode_plain() -> None:
    rank = PLAIN.num_channels
    latent_decode_triton(
        meta(2, 1, 8, rank, dtype=torch.float32),
        rows_of(PLAIN, frame_tokens=8),
        meta(2, 512, dtype=torch.int32),
        meta(2, dtype=torch.int32),
        read=LatentRead(key_rank=rank, value_rank=rank, scale=0.1),
        offset=None,
        query_lens=None,
        first_slots=None,
        num_splits=4,
    )


def rebuilt(
    *bits: int,
    per_head: bool,
    value_rank: int = 256,
    normalized: bool = False,
    tiles: Tiles | None = None,
):
    """Decoding with rebuilt keys: 8 key heads of 128, 64 channels each or for all, in runs of these
    widths that are equally long."""

    def run() -> None:
        key_rank = 8 * 64 if per_head else 64
        runs = [(rank // len(bits), width) for rank in (key_rank, value_rank) for width in bits]
        layout = RowFormat(alignment=16).layout(runs)
        angles = meta(32768, 64)
        key_up = KeyUp(
            weight=meta(8, 128, 64, dtype=torch.bfloat16),
            bias=meta(8, 128, dtype=torch.bfloat16),
            cos=angles,
            sin=angles,
            norm_weight=meta(128, dtype=torch.float32) if normalized else None,
            norm_epsilon=1e-6 if normalized else 0.0,
            per_head=per_head,
        )
        latent_decode_triton(
            meta(8, 1, 32, 128, dtype=torch.bfloat16),
            rows_of(layout),
            meta(8, 512, dtype=torch.int32),
            meta(8, dtype=torch.int32),
            read=LatentRead(key_rank=key_rank, value_rank=value_rank, scale=0.1, key_up=key_up),
            offset=None,
            query_lens=None,
            first_slots=None,
            num_splits=None,
            tiles=tiles,
        )

    return run


def in_two_passes(
    runs: list[tuple[int, int]],
    mode: str,
    *,
    heads: int = 32,
    key_heads: int = 8,
    head_dim: int = 128,
    dtype: torch.dtype = torch.bfloat16,
    new_tokens: int = 1,
):
    """Decoding rows that one launch has no room for, all of them as keys and as values.

    Args:
        mode: `absorb`, `reconstruct` or `rotate`, with blocks of 64 slots.
    """

    def run() -> None:
        layout = RowFormat(alignment=16).layout(runs)
        rank = layout.num_channels
        ups: dict[str, Any] = {}
        weight = meta(key_heads, head_dim, rank, dtype=dtype)
        angles = meta(512, head_dim // 2, dtype=torch.float32)
        if mode == "reconstruct":
            bias = meta(key_heads, head_dim, dtype=dtype)
            ups["key_up"] = KeyUp(weight=weight, bias=bias, cos=angles, sin=angles)
        elif mode == "rotate":
            mean = meta(key_heads, 64, head_dim, dtype=dtype)
            ups["block_up"] = BlockUp(weight=weight, mean=mean, cos=angles, sin=angles)
        read = LatentRead(key_rank=rank, value_rank=rank, scale=0.1, **ups)
        assert not read.in_one_launch(rank, dtype.itemsize)
        latent_decode_in_two_passes(
            meta(1, new_tokens, heads, rank if mode == "absorb" else head_dim, dtype=dtype),
            rows_of(layout),
            meta(1, 64, dtype=torch.int32),
            meta(1, dtype=torch.int32),
            read=read,
            offset=None,
            query_lens=None,
            first_slots=None,
            num_splits=None,
        )

    return run


def in_two_passes_narrow(mode: str, query_dtype: torch.dtype = torch.float16):
    """Narrow rows of keys that are rotated in part, with windows, softcap and ragged queries."""

    def run() -> None:
        angles = meta(64, 4, dtype=torch.float32)
        ups: dict[str, Any] = {}
        if mode == "rotate":
            ups["block_up"] = BlockUp(
                weight=meta(2, 20, 44), mean=meta(2, 64, 20), cos=angles, sin=angles
            )
        elif mode == "reconstruct":
            ups["key_up"] = KeyUp(
                weight=meta(2, 20, 22),
                bias=meta(2, 20),
                cos=angles,
                sin=angles,
                norm_weight=meta(20, dtype=torch.float32),
                norm_epsilon=1e-6,
                per_head=True,
            )
        latent_decode_in_two_passes(
            meta(2, 5, 6, 20 if ups else 44, dtype=query_dtype),
            rows_of(NARROW, frame_tokens=8),
            meta(2, 512, dtype=torch.int32),
            meta(2, dtype=torch.int32),
            read=LatentRead(key_rank=44, value_rank=20, scale=0.1, window=100, softcap=30.0, **ups),
            offset=None if ups else meta(2, 5, 6, dtype=torch.float32),
            query_lens=meta(2, dtype=torch.int32),
            first_slots=meta(2, dtype=torch.int32),
            num_splits=1,
        )

    return run


def append(name: str):
    def run() -> None:
        rows = rows_of(LAYOUTS[name])
        latent_append_triton(
            meta(64, rows.layout.num_channels, dtype=torch.bfloat16),
            rows,
            meta(64, dtype=torch.int64),
            center=None,
            costs=meta(rows.layout.num_channels, dtype=torch.float32),
        )

    return run

"""The kernels and sizes that `compile_kernels` compiles: those of real models at 4x and 8x."""

from __future__ import annotations

import torch

from cacheshrink_hybrid.kernels.latent_append.kernel import latent_append_triton
from cacheshrink_hybrid.kernels.latent_decode import LatentRead
from cacheshrink_hybrid.kernels.latent_decode.kernel import latent_decode_triton
from cacheshrink_hybrid.kernels.paged_rows import PagedRows
from cacheshrink_hybrid.kernels.row_layout import LEVELS_SIZE, RowLayout

from .compile_kernels import ASYNC_COPY, MATRIX, WIDE_LOAD, Case, meta

LAYOUTS = {
    "float16": RowLayout.uniform(128, torch.float16, alignment=16),
    "bfloat16": RowLayout.uniform(128, torch.bfloat16, alignment=16),
    "e4m3": RowLayout.uniform(128, torch.float8_e4m3fn, alignment=16),
    "8": RowLayout.of_bits([(128, 8)], alignment=16),
    "4": RowLayout.of_bits([(128, 4)], alignment=16),
    "mixed": RowLayout.of_bits([(32, 8), (96, 4), (64, 2)], alignment=16),
    "float16-512": RowLayout.uniform(512, torch.float16, alignment=16),
    "8-512": RowLayout.of_bits([(512, 8)], alignment=16),
    "4-512": RowLayout.of_bits([(512, 4)], alignment=16),
}


def rows_of(layout: RowLayout, *, frame_tokens: int = 64) -> PagedRows:
    frame_bytes = -(-frame_tokens * layout.row_bytes // 256) * 256
    return PagedRows(
        arena=meta(1024 * frame_bytes, dtype=torch.uint8),
        layout=layout,
        levels=None if not layout.uses_tables else meta(LEVELS_SIZE, dtype=torch.float32),
        frame_bytes=frame_bytes,
        frame_tokens=frame_tokens,
    )


def absorb(name: str, *, dtype: torch.dtype = torch.bfloat16, heads: int = 32):
    """Decoding with absorbed queries, all of the row as keys and as values."""

    def run() -> None:
        rows = rows_of(LAYOUTS[name])
        rank = rows.layout.num_channels
        latent_decode_triton(
            meta(8, 1, heads, rank, dtype=dtype),
            rows,
            meta(8, 512, dtype=torch.int32),
            meta(8, dtype=torch.int32),
            read=LatentRead(key_rank=rank, value_rank=rank, scale=0.1),
            offset=None,
            query_lens=None,
            num_splits=None,
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
            reach=None if rows.layout.head_byte is None else meta(rows.layout.num_channels),
        )

    return run


CASES = [
    *(
        Case(f"latent_decode-absorb-{name}", absorb(name), needs=(MATRIX, WIDE_LOAD, ASYNC_COPY))
        for name in LAYOUTS
    ),
    Case("latent_decode-absorb-8-64heads", absorb("8", heads=64), needs=(MATRIX, WIDE_LOAD)),
    Case("latent_decode-absorb-float16-16heads", absorb("float16", heads=16), needs=(MATRIX,)),
    Case("latent_decode-absorb-8-float32", absorb("8", dtype=torch.float32), hot=False),
    Case("latent_append-mixed", append("mixed")),
    Case("latent_append-e4m3", append("e4m3")),
]

"""The kernels and sizes that `compile_kernels` compiles: those of real models at 4x and 8x."""

from __future__ import annotations

from dataclasses import replace

import torch

from cacheshrink_hybrid.kernels.conv_update_project import ConvPages
from cacheshrink_hybrid.kernels.conv_update_project.kernel import conv_update_project_triton
from cacheshrink_hybrid.kernels.gdn_replay import DeltaRing
from cacheshrink_hybrid.kernels.gdn_replay.kernel import gdn_replay_step_triton
from cacheshrink_hybrid.kernels.gdn_step.kernel import gdn_step_triton
from cacheshrink_hybrid.kernels.latent_append.kernel import latent_append_triton
from cacheshrink_hybrid.kernels.latent_decode import KeyUp, LatentRead
from cacheshrink_hybrid.kernels.latent_decode.kernel import latent_decode_triton
from cacheshrink_hybrid.kernels.latent_decode.tiles import Tiles
from cacheshrink_hybrid.kernels.mamba1_step.kernel import mamba1_step_triton
from cacheshrink_hybrid.kernels.paged_rows import PagedRows
from cacheshrink_hybrid.kernels.pool_copy.kernel import pool_copy_triton
from cacheshrink_hybrid.kernels.row_layout import LEVELS_SIZE, Kind, RowLayout
from cacheshrink_hybrid.kernels.ssd_replay import ReplayRing
from cacheshrink_hybrid.kernels.ssd_replay.kernel import (
    ssd_replay_flush_triton,
    ssd_replay_read_triton,
)
from cacheshrink_hybrid.kernels.ssd_step.kernel import ssd_step_triton
from cacheshrink_hybrid.kernels.state_pages import StatePages, StatePlace, StateSegment

from .compile_kernels import ASYNC_COPY, MATRIX, WARPGROUP, WIDE_LOAD, WIDE_STORE, Case, meta

LAYOUTS = {
    "float32": RowLayout.uniform(128, torch.float32, alignment=16),
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
        (8, Kind.LEVELS4),
        (4, Kind.LEVELS2),
        (8, Kind.FLOAT16),
        (8, Kind.BFLOAT16),
        (8, Kind.E4M3),
        (8, Kind.E5M2),
        (20, Kind.UNIFORM8),
    ]
)
# Runs of 4, and no gains: what tiny models have at few bytes.
PLAIN = RowLayout.of_bits([(4, 4), (20, 2)], gains=False)


def everything(*, rebuilt: bool, query_dtype: torch.dtype = torch.float16):
    """Narrow rows with every option: windows, first tokens, softcap, sinks, ragged queries."""

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
                value_rank=20 if rebuilt else 60,
                scale=0.1,
                window=100,
                num_sink_tokens=4,
                softcap=30.0,
                sinks=meta(6, dtype=torch.float32),
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
    latent_append_triton(latent, rows, slots, center=meta(channels), reach=meta(channels))


def append_plain() -> None:
    latent, slots = meta(64, PLAIN.num_channels, dtype=torch.float32), meta(64, dtype=torch.int64)
    latent_append_triton(latent, rows_of(PLAIN, frame_tokens=8), slots, center=None, reach=None)


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
    bits: int,
    *,
    per_head: bool,
    value_rank: int = 256,
    normalized: bool = False,
    tiles: Tiles | None = None,
):
    """Decoding with rebuilt keys: 8 key heads of 128, 64 channels each or for all."""

    def run() -> None:
        key_rank = 8 * 64 if per_head else 64
        runs = [(key_rank, bits), (value_rank, bits)]
        layout = RowLayout.of_bits(runs, alignment=16)
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


def pages_of(heads: int, head_dim: int, rank: int, code: str) -> StatePages:
    """States of a layer, row by row over frames of 64 KiB."""
    segment = StateSegment(heads=tuple(range(heads)), rank=rank, code=code)
    return StatePages(
        arena=meta(2**30, dtype=torch.uint8),
        frame_bytes=65536,
        place=StatePlace.packed(65536),
        head_dim=head_dim,
        segments=(segment,),
    )


def ssd(heads: int, head_dim: int, rank: int, groups: int, code: str, *, batch: int = 64):
    def run() -> None:
        pages = pages_of(heads, head_dim, rank, code)
        table = meta(batch, pages.num_frames, dtype=torch.int32)
        shared = meta(batch, groups, rank, dtype=torch.bfloat16)
        ssd_step_triton(
            meta(batch, heads, head_dim, dtype=torch.bfloat16),
            meta(batch, heads, dtype=torch.bfloat16),
            meta(heads, dtype=torch.float32),
            shared,
            shared,
            pages,
            table,
            table,
            meta(heads, dtype=torch.float32),
            meta(heads, dtype=torch.float32),
        )

    return run


def replay(heads: int, head_dim: int, ranks: tuple[int, ...], code: str, *, flush: bool):
    """Reading through, or flushing, a ring of 16 inputs in bfloat16, behind the state; given the
    rank of each group."""

    def run() -> None:
        groups, rank = len(ranks), max(ranks)
        per_group = heads // groups
        pages = replace(
            pages_of(heads, head_dim, rank, code),
            segments=tuple(
                StateSegment(
                    heads=tuple(h for h in range(heads) if ranks[h // per_group] == kept),
                    rank=kept,
                    code=code,
                )
                for kept in sorted(set(ranks))
            ),
        )
        batch, at, places = 64, -(-pages.num_bytes // 16) * 16, []
        for size in (32 * heads * head_dim, 32 * groups * rank, 64 * heads):
            places.append(StatePlace.packed(65536, first_byte=at))
            at += size
        ring = ReplayRing(
            length=16,
            values=places[0],
            writes=places[1],
            steps=places[2],
            groups=groups,
            ranks=ranks if len(set(ranks)) > 1 else None,
            dtype=torch.bfloat16,
        )
        table = meta(batch, ring.num_frames(pages), dtype=torch.int32)
        pending = meta(batch, dtype=torch.int32)
        rate = meta(heads, dtype=torch.float32)
        shared = meta(batch, groups, rank, dtype=torch.bfloat16)
        x = meta(batch, heads, head_dim, dtype=torch.bfloat16)
        dt = meta(batch, heads, dtype=torch.float32)
        if flush:
            newest = (x, dt, shared)
            ssd_replay_flush_triton(rate, pages, ring, table, table, pending, newest)
            return
        ssd_replay_read_triton(x, dt, rate, shared, shared, pages, ring, table, pending, rate)

    return run


def gdn(heads: int, head_dim: int, rank: int, groups: int, code: str, *, batch: int = 64):
    def run() -> None:
        pages = pages_of(heads, head_dim, rank, code)
        table = meta(batch, pages.num_frames, dtype=torch.int32)
        shared = meta(batch, groups, rank, dtype=torch.bfloat16)
        scalar = meta(batch, heads, dtype=torch.float32)
        value = meta(batch, heads, head_dim, dtype=torch.bfloat16)
        gdn_step_triton(shared, value, scalar, scalar, shared, pages, table, table)

    return run


def gdn_replay(heads: int, head_dim: int, rank: int, groups: int, code: str, *, batch: int = 64):
    """A step through a ring of 15 inputs in bfloat16, behind the state."""

    def run() -> None:
        pages = pages_of(heads, head_dim, rank, code)
        at, places = -(-pages.num_bytes // 16) * 16, []
        for size in (30 * heads * head_dim, 30 * groups * rank, 60 * heads, 60 * heads):
            places.append(StatePlace.packed(65536, first_byte=at))
            at += -(-size // 16) * 16
        ring = DeltaRing(
            length=15,
            values=places[0],
            writes=places[1],
            decays=places[2],
            betas=places[3],
            groups=groups,
            dtype=torch.bfloat16,
        )
        table = meta(batch, ring.num_frames(pages), dtype=torch.int32)
        shared = meta(batch, groups, rank, dtype=torch.float32)
        scalar = meta(batch, heads, dtype=torch.float32)
        value = meta(batch, heads, head_dim, dtype=torch.float32)
        pending = meta(batch, dtype=torch.int32)
        gdn_replay_step_triton(shared, value, scalar, scalar, shared, pages, ring, table, pending)

    return run


def mamba1(head_dim: int, rank: int, code: str, *, batch: int = 64):
    def run() -> None:
        pages = pages_of(1, head_dim, rank, code)
        table = meta(batch, pages.num_frames, dtype=torch.int32)
        shared = meta(batch, 1, rank, dtype=torch.bfloat16)
        x = meta(batch, 1, head_dim, dtype=torch.bfloat16)
        rate = meta(1, head_dim, rank, dtype=torch.float32)
        mamba1_step_triton(x, x, rate, shared, shared, pages, table, table, None)

    return run


def conv(
    channels: int,
    order: tuple[str, ...],
    *,
    groups: int = 0,
    group_size: int = 128,
    rank: int = 0,
    batch: int = 64,
):
    """A convolution, with projections of what writes and reads the state."""

    def run() -> None:
        pages = ConvPages(
            arena=meta(2**30, dtype=torch.uint8),
            frame_bytes=65536,
            place=StatePlace.packed(65536),
            channels=channels,
            columns=3,
            dtype=torch.bfloat16,
        )
        table = meta(batch, pages.num_frames, dtype=torch.int32)
        basis = meta(groups, group_size, rank, dtype=torch.bfloat16)
        bases = [basis if name in order else None for name in ("write", "read")]
        conv_update_project_triton(
            meta(batch, channels, dtype=torch.bfloat16),
            meta(channels, 4, dtype=torch.bfloat16),
            meta(channels, dtype=torch.bfloat16),
            pages,
            table,
            table,
            order,
            groups,
            group_size if groups else 0,
            *bases,
            order[0] == "read",
        )

    return run


def copy() -> None:
    arena = meta(2**30, dtype=torch.uint8)
    frames = meta(64, dtype=torch.int32)
    pool_copy_triton(arena, arena, frames, frames, 65536)


DECODE = (MATRIX, WIDE_LOAD, ASYNC_COPY)
STREAM = (WIDE_LOAD, WIDE_STORE)

CASES = [
    *(
        Case(
            f"latent_decode-absorb-{name}",
            absorb(name),
            needs=DECODE,
            everywhere=name in ("float16", "e4m3", "mixed"),
        )
        for name in LAYOUTS
        if name != "float32"
    ),
    Case("latent_decode-absorb-8-64heads", absorb("8", heads=64), needs=(*DECODE, WARPGROUP)),
    # Frames of 16 slots, and of 24, where tiles cannot lie in one frame.
    Case("latent_decode-absorb-8-frames16", absorb("8", frame_tokens=16), needs=DECODE),
    Case("latent_decode-absorb-mixed-frames16", absorb("mixed", frame_tokens=16), needs=DECODE),
    Case("latent_decode-absorb-8-frames24", absorb("8", frame_tokens=24), needs=DECODE),
    Case("latent_decode-absorb-mixed-frames24", absorb("mixed", frame_tokens=24), needs=DECODE),
    Case("latent_decode-absorb-float16-16heads", absorb("float16", heads=16), needs=DECODE),
    Case("latent_decode-absorb-8-float32", absorb("8", dtype=torch.float32), hot=False),
    Case("latent_decode-absorb-float32", absorb("float32", dtype=torch.float32), hot=False),
    *(
        Case(
            f"latent_decode-rebuilt-{'per_head' if per_head else 'joint'}-{bits}",
            rebuilt(bits, per_head=per_head),
            needs=DECODE,
        )
        for per_head, bits in [(True, 16), (True, 8), (False, 16), (False, 8)]
    ),
    Case(
        "latent_decode-rebuilt-normalized-joint-8",
        rebuilt(8, per_head=False, normalized=True),
        needs=DECODE,
    ),
    Case("latent_decode-narrow-absorb", everything(rebuilt=False), hot=False),
    Case("latent_decode-narrow-rebuilt", everything(rebuilt=True), hot=False),
    Case("latent_append-mixed", append("mixed"), everywhere=True),
    Case("latent_append-float32", append("float32"), hot=False),
    Case("latent_decode-plain", decode_plain, hot=False),
    Case("latent_append-narrow", append_narrow, hot=False),
    Case("latent_append-plain", append_plain, hot=False),
    # Nemotron-H at full and half rank, Falcon-H1, Qwen3-Next, Jamba.
    *(
        Case(
            f"ssd_step-128x64x{rank}-{code}",
            ssd(128, 64, rank, 8, code),
            needs=STREAM,
            everywhere=rank == 64,
        )
        for rank, code in [(128, "float32"), (128, "float16"), (64, "float16"), (64, "int8")]
    ),
    Case("ssd_step-24x128x128-float16", ssd(24, 128, 128, 2, "float16"), needs=STREAM),
    Case("ssd_step-128x64x64-float8", ssd(128, 64, 64, 8, "float8"), needs=STREAM, everywhere=True),
    Case("ssd_step-8x24x12-int8", ssd(8, 24, 12, 1, "int8"), hot=False),
    *(
        Case(f"gdn_step-32x128x{rank}-{code}", gdn(32, 128, rank, 16, code), needs=STREAM)
        for rank, code in [(128, "float32"), (64, "float16"), (64, "int8")]
    ),
    *(
        Case(f"gdn_replay-32x128x64-{code}", gdn_replay(32, 128, 64, 16, code), needs=STREAM)
        for code in ("float16", "int8")
    ),
    Case("mamba1_step-8192x16-bfloat16", mamba1(8192, 16, "bfloat16"), needs=STREAM),
    *(
        Case(
            f"ssd_replay-read-128x64x64-{code}",
            replay(128, 64, (64,) * 8, code, flush=False),
            needs=(WIDE_LOAD,),
        )
        for code in ("float16", "int8")
    ),
    Case(
        "ssd_replay-flush-128x64x64-float16",
        replay(128, 64, (64,) * 8, "float16", flush=True),
        needs=STREAM,
    ),
    # Groups of different ranks, one launch for those of each.
    *(
        Case(
            f"ssd_replay-{'flush' if flush else 'read'}-128x64x64+48-float16",
            replay(128, 64, (64,) * 4 + (48,) * 4, "float16", flush=flush),
            needs=STREAM if flush else (WIDE_LOAD,),
        )
        for flush in (False, True)
    ),
    # Nemotron-H, the same with a folded B, Qwen3-Next, and Jamba, which convolves only.
    Case(
        "conv_update_project-10240-128x64",
        conv(10240, ("values", "write", "read"), groups=8, rank=64),
        needs=(WIDE_LOAD,),
    ),
    Case("conv_update_project-read", conv(9728, ("values", "read"), groups=8, rank=64)),
    Case("conv_update_project-delta", conv(8192, ("read", "write", "values"), groups=16, rank=64)),
    Case("conv_update_project-values", conv(8192, ("values",))),
    Case("pool_copy", copy, needs=STREAM),
]

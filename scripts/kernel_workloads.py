"""Kernels with inputs of a size, and what one launch has to move: the cases of `bench_kernels`.

A workload counts every byte that its operation must read or write once: rows or states, scales,
tables, queries, results, and the partial results of split sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cacheshrink_hybrid.codecs import RowFormat
from cacheshrink_hybrid.codecs.row_layout import Kind, RowLayout
from cacheshrink_hybrid.codecs.state import one_segment
from cacheshrink_hybrid.kernels.backend import Backend
from cacheshrink_hybrid.kernels.latents.append import latent_append
from cacheshrink_hybrid.kernels.latents.decode import BlockUp, KeyUp, LatentRead, latent_decode
from cacheshrink_hybrid.kernels.latents.paged_rows import PagedRows
from cacheshrink_hybrid.kernels.states.gdn_step import gdn_step
from cacheshrink_hybrid.kernels.states.pages import StatePages, StatePlace
from cacheshrink_hybrid.kernels.states.ssd_step import ssd_step
from cacheshrink_hybrid.latents.fit.read_time import Reading
from cacheshrink_hybrid.latents.fit.rotate import BLOCK_SLOTS

Run = Callable[[], object]
MIXED_AT_4X = [(240, 6), (560, 5), (720, 4), (320, 3)]
"""Channels and bits of a row of 8 key heads of 128 at 4x: 1,840 channels in 1,024 bytes."""
FILLED_AT_ONCE = 65536
FRAME_TOKENS = 64

CODECS = {
    "float16": lambda rank: RowLayout.of_runs([(rank, Kind.FLOAT16)], alignment=16),
    "float8": lambda rank: RowLayout.of_runs([(rank, Kind.E4M3)], alignment=16),
    "8": lambda rank: RowFormat(alignment=16).layout([(rank, 8)]),
    "4": lambda rank: RowFormat(alignment=16).layout([(rank, 4)]),
    "mixed": lambda rank: RowFormat(alignment=16).layout(
        [(rank // 8, 6), (rank // 8, 5), (rank // 4, 4), (rank // 4, 3), (rank // 4, 2)]
    ),
}


@dataclass(frozen=True)
class Workload:
    """One operation on inputs of one size.

    Attributes:
        name: what it is, with its sizes.
        group: workloads of one group are compared with each other.
        num_bytes: bytes that one launch must move.
        run: launches it once.
        target: share of the copy bandwidth that is asked of it; None for baselines.
        sizes: its sizes, for the table.
        num_operations: additions and multiplications of the matrix products that one launch does,
            where they may be what it waits for; 0 where they are not counted.
    """

    name: str
    group: str
    num_bytes: int
    run: Run
    target: float | None = None
    sizes: dict = field(default_factory=dict)
    num_operations: float = 0.0


def latent_rows(
    layout: RowLayout, batch: int, context: int, frame_tokens: int, device: torch.device
) -> tuple[PagedRows, Tensor, Tensor]:
    """Rows of normally distributed latents, in frames in random order."""
    frames_each = -(-context // frame_tokens)
    frame_bytes = -(-frame_tokens * layout.row_bytes // 256) * 256
    num_frames = batch * frames_each + 1
    arena = torch.zeros(num_frames * frame_bytes, dtype=torch.uint8, device=device)
    order = torch.randperm(num_frames - 1, device=device).int() + 1
    rows = PagedRows(
        arena=arena,
        layout=layout,
        frame_bytes=frame_bytes,
        frame_tokens=frame_tokens,
    )
    frames = order.long().repeat_interleave(frame_tokens)
    slots = frames * frame_tokens + torch.arange(len(frames), device=device) % frame_tokens
    for part in slots.split(FILLED_AT_ONCE):
        latent_append(torch.randn(len(part), layout.num_channels, device=device), rows, part)
    lens = torch.full((batch,), context, dtype=torch.int32, device=device)
    return rows, order.view(batch, frames_each), lens


def latent_attention(
    *,
    codec: str,
    batch: int,
    context: int,
    rank: int,
    heads: int,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    frame_tokens: int = FRAME_TOKENS,
    target: float | None = None,
    dense: bool = False,
    backend: Backend = "auto",
) -> Workload:
    """Decoding with absorbed queries. `dense` puts each sequence into one frame: no paging."""
    layout = CODECS[codec](rank)
    frame_tokens = context if dense else frame_tokens
    rows, table, lens = latent_rows(layout, batch, context, frame_tokens, device)
    query = torch.randn(batch, 1, heads, rank, device=device).to(dtype)
    read = LatentRead(key_rank=rank, value_rank=rank, scale=rank**-0.5)
    moved = batch * context * layout.row_bytes + table.numel() * 4 + 2 * query.nbytes

    def run() -> object:
        return latent_decode(query, rows, table, lens, read=read, backend=backend)

    kind = "dense" if dense else "paged"
    return Workload(
        f"latent_decode {kind} {codec} B={batch} L={context} R={rank} H={heads}",
        f"attention B={batch} L={context}",
        moved,
        run,
        target,
        {"batch": batch, "context": context, "codec": codec, "rank": rank, "heads": heads},
    )


def per_head_attention(
    *,
    stored_rotated: bool,
    batch: int,
    context: int,
    rank: int,
    value_rank: int,
    key_heads: int,
    heads: int,
    head_dim: int,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    backend: Backend = "auto",
) -> Workload:
    """Decoding with 8-bit latents, values apart: keys of each head's own are rebuilt, or those of
    all heads were stored rotated."""
    layout = RowFormat(alignment=16).layout([(rank * key_heads, 8), (value_rank, 8)])
    rows, table, lens = latent_rows(layout, batch, context, FRAME_TOKENS, device)
    own_rank = rank * key_heads if stored_rotated else rank
    ups = _ups(stored_rotated, key_heads, head_dim, own_rank, context, device, dtype, per_head=True)
    read = LatentRead(
        key_rank=rank * key_heads,
        value_rank=value_rank,
        scale=head_dim**-0.5,
        **ups,
    )
    query = torch.randn(batch, 1, heads, read.query_width, device=device).to(dtype)
    assert read.up is not None
    moved = batch * context * layout.row_bytes + table.numel() * 4 + query.nbytes
    moved += batch * heads * value_rank * dtype.itemsize + read.up.weight.nbytes

    def run() -> object:
        return latent_decode(query, rows, table, lens, read=read, backend=backend)

    way = "rotated" if stored_rotated else "rebuilt"
    return Workload(
        f"latent_decode {way} 8 B={batch} L={context} r={rank}x{key_heads} V={value_rank}",
        f"attention B={batch} L={context}",
        moved,
        run,
        None,
        {"batch": batch, "context": context, "codec": "8", "rank": rank, "heads": heads},
    )


def joint_attention(
    *,
    mode: str,
    runs: Sequence[tuple[int, int]],
    batch: int,
    context: int,
    key_heads: int,
    heads: int,
    head_dim: int,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    backend: Backend = "auto",
) -> Workload:
    """Decoding with one few-bit latent for keys and values of all heads.

    Args:
        mode: `absorb`, `reconstruct` or `rotate`, as of a plan.
        runs: (channels, bits) of a row.
    """
    layout = RowFormat(alignment=16).layout(runs)
    rank = layout.num_channels
    rows, table, lens = latent_rows(layout, batch, context, FRAME_TOKENS, device)
    ups: dict[str, KeyUp | BlockUp] = {}
    if mode != "absorb":
        ups = _ups(
            mode == "rotate", key_heads, head_dim, rank, context, device, dtype, per_head=False
        )
    read = LatentRead(key_rank=rank, value_rank=rank, scale=head_dim**-0.5, **ups)  # type: ignore[arg-type]
    query = torch.randn(batch, 1, heads, read.query_width, device=device).to(dtype)
    moved = batch * context * layout.row_bytes + table.numel() * 4 + query.nbytes
    moved += batch * heads * rank * dtype.itemsize
    moved += 0 if read.up is None else read.up.weight.nbytes
    reading = Reading(
        method="rotate_joint" if mode == "rotate" else "joint",
        read_mode=mode,
        num_heads=heads,
        kv_width=key_heads * head_dim,
        head_dim=head_dim,
        key_rank=rank,
        value_rank=rank,
        row_bytes=layout.row_bytes,
    )

    def run() -> object:
        return latent_decode(query, rows, table, lens, read=read, backend=backend)

    return Workload(
        f"latent_decode {mode} mixed B={batch} L={context} R={rank} H={heads}",
        f"attention B={batch} L={context}",
        moved,
        run,
        None,
        {"batch": batch, "context": context, "codec": "mixed", "rank": rank, "heads": heads},
        num_operations=batch * context * reading.operations,
    )


def _ups(
    stored_rotated: bool,
    key_heads: int,
    head_dim: int,
    own_rank: int,
    context: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    per_head: bool,
) -> dict[str, KeyUp | BlockUp]:
    """How keys of so many channels are met that are stored rotated, or else rebuilt."""
    angles = torch.arange(context, device=device)[:, None] * 1e4 ** -torch.linspace(
        0, 1, head_dim // 2, device=device
    )
    of_heads = torch.randn(key_heads, head_dim, own_rank, device=device) / own_rank**0.5
    of_heads = of_heads.to(dtype)
    if stored_rotated:
        back = -angles[::BLOCK_SLOTS]
        mean = torch.randn(key_heads, BLOCK_SLOTS, head_dim, device=device).to(dtype)
        return {"block_up": BlockUp(weight=of_heads, mean=mean, cos=back.cos(), sin=back.sin())}
    return {
        "key_up": KeyUp(
            weight=of_heads,
            bias=torch.zeros(key_heads, head_dim, device=device, dtype=dtype),
            cos=angles.cos().half(),
            sin=angles.sin().half(),
            per_head=per_head,
        )
    }


def full_attention(
    *,
    batch: int,
    context: int,
    heads: int,
    key_heads: int,
    head_dim: int,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
) -> Workload:
    """torch's SDPA on uncompressed keys and values, by FlashAttention on a GPU."""
    query = torch.randn(batch, heads, 1, head_dim, device=device).to(dtype)
    keys, values = torch.randn(2, batch, key_heads, context, head_dim, device=device).to(dtype)
    on_gpu = device.type == "cuda"
    backends = [torch.nn.attention.SDPBackend.FLASH_ATTENTION] if on_gpu else None

    def attend() -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            query, keys, values, enable_gqa=True
        )

    def run() -> object:
        if backends is None:
            return attend()
        with torch.nn.attention.sdpa_kernel(backends):
            return attend()

    return Workload(
        f"SDPA full K/V B={batch} L={context} {key_heads}x{head_dim}",
        f"attention B={batch} L={context}",
        keys.nbytes + values.nbytes + 2 * query.nbytes,
        run,
        None,
        {"batch": batch, "context": context, "heads": heads},
    )


def state_pages(
    batch: int, heads: int, head_dim: int, rank: int, code: str, device: torch.device
) -> tuple[StatePages, Tensor]:
    """States of zeros in frames of 64 KiB in random order, and their table."""
    states, frame_bytes = one_segment(heads, head_dim, rank, code), 65536
    place = StatePlace.packed(frame_bytes)
    count = batch * place.num_frames(states.num_bytes, frame_bytes)
    arena = torch.zeros(count * frame_bytes, dtype=torch.uint8, device=device)
    table = torch.randperm(count, device=device).int().view(batch, -1)
    return StatePages(arena=arena, frame_bytes=frame_bytes, place=place, format=states), table


def state_bytes(pages: StatePages, batch: int) -> int:
    """Bytes that reading and writing all states moves."""
    return 2 * batch * pages.format.num_bytes


def ssd(
    *,
    batch: int,
    heads: int,
    head_dim: int,
    rank: int,
    groups: int,
    code: str,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    target: float | None = None,
    backend: Backend = "auto",
) -> Workload:
    """One step of Mamba-2."""
    pages, table = state_pages(batch, heads, head_dim, rank, code, device)
    x = torch.randn(batch, heads, head_dim, device=device).to(dtype)
    shared = torch.randn(2, batch, groups, rank, device=device).to(dtype)
    dt = torch.rand(batch, heads, device=device)
    A = -torch.rand(heads, device=device)

    def run() -> object:
        return ssd_step(
            x,
            dt,
            A,
            shared[0],
            shared[1],
            pages=pages,
            read_table=table,
            write_table=table,
            backend=backend,
        )

    moved = state_bytes(pages, batch) + 2 * x.nbytes + shared.nbytes + dt.nbytes
    return Workload(
        f"ssd_step {code} B={batch} {heads}x{head_dim}x{rank}",
        f"ssd B={batch} {heads}x{head_dim}",
        moved + 2 * table.nbytes,
        run,
        target,
        {"batch": batch, "code": code, "rank": rank},
    )


def gdn(
    *,
    batch: int,
    heads: int,
    head_dim: int,
    rank: int,
    groups: int,
    code: str,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    target: float | None = None,
    backend: Backend = "auto",
) -> Workload:
    """One step of the gated delta rule."""
    pages, table = state_pages(batch, heads, head_dim, rank, code, device)
    value = torch.randn(batch, heads, head_dim, device=device).to(dtype)
    shared = torch.randn(2, batch, groups, rank, device=device)
    shared = torch.nn.functional.normalize(shared, dim=-1).to(dtype)
    log_decay = -torch.rand(batch, heads, device=device)
    beta = torch.rand(batch, heads, device=device)

    def run() -> object:
        return gdn_step(
            shared[0],
            value,
            log_decay,
            beta,
            shared[1],
            pages=pages,
            read_table=table,
            write_table=table,
            backend=backend,
        )

    moved = state_bytes(pages, batch) + 2 * value.nbytes + shared.nbytes + 2 * beta.nbytes
    return Workload(
        f"gdn_step {code} B={batch} {heads}x{head_dim}x{rank}",
        f"gdn B={batch} {heads}x{head_dim}",
        moved + 2 * table.nbytes,
        run,
        target,
        {"batch": batch, "code": code, "rank": rank},
    )


def torch_ssd(
    *, batch: int, heads: int, head_dim: int, rank: int, groups: int, device: torch.device
) -> Workload:
    """The step as transformers computes it without extra packages: float32 states, torch."""
    state = torch.zeros(batch, heads, head_dim, rank, device=device)
    x = torch.randn(batch, heads, head_dim, device=device)
    write, read = torch.randn(2, batch, heads, rank, device=device)
    dt = torch.rand(batch, heads, device=device)
    A = -torch.rand(heads, device=device)

    def run() -> object:
        decay = torch.exp(dt * A)[..., None, None]
        state.mul_(decay).add_((x * dt[..., None])[..., None] * write[:, :, None])
        return torch.matmul(state, read[..., None])

    return Workload(
        f"transformers (torch) B={batch} {heads}x{head_dim}x{rank}",
        f"ssd B={batch} {heads}x{head_dim}",
        2 * state.nbytes + 2 * x.nbytes,
        run,
        None,
        {"batch": batch, "code": "float32", "rank": rank},
    )


def mamba_ssm_step(
    *, batch: int, heads: int, head_dim: int, rank: int, groups: int, device: torch.device
) -> Workload | None:
    """The step kernel of mamba_ssm on float32 states; None where it is not installed."""
    try:
        from mamba_ssm.ops.triton.selective_state_update import selective_state_update
    except ImportError:
        return None
    state = torch.zeros(batch, heads, head_dim, rank, device=device)
    x = torch.randn(batch, heads, head_dim, device=device, dtype=torch.bfloat16)
    write, read = torch.randn(2, batch, groups, rank, device=device).bfloat16()
    dt = torch.rand(batch, heads, 1, device=device).expand(batch, heads, head_dim)
    A = (-torch.rand(heads, device=device))[:, None, None].expand(heads, head_dim, rank)

    def run() -> object:
        return selective_state_update(state, x, dt, A, write, read)

    return Workload(
        f"mamba_ssm B={batch} {heads}x{head_dim}x{rank}",
        f"ssd B={batch} {heads}x{head_dim}",
        2 * state.nbytes + 2 * x.nbytes,
        run,
        None,
        {"batch": batch, "code": "float32", "rank": rank},
    )


def fla_gdn_step(
    *, batch: int, heads: int, head_dim: int, rank: int, groups: int, device: torch.device
) -> Workload | None:
    """The recurrent kernel of fla on float32 states; None where it is not installed."""
    try:
        from fla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule
    except ImportError:
        return None
    state = torch.zeros(batch, heads, rank, head_dim, device=device)
    key, query = torch.randn(2, batch, 1, heads, rank, device=device).bfloat16()
    value = torch.randn(batch, 1, heads, head_dim, device=device).bfloat16()
    decay, beta = -torch.rand(2, batch, 1, heads, device=device)

    def run() -> object:
        return fused_recurrent_gated_delta_rule(
            query, key, value, decay, -beta, initial_state=state, output_final_state=True
        )

    return Workload(
        f"fla B={batch} {heads}x{head_dim}x{rank}",
        f"gdn B={batch} {heads}x{head_dim}",
        2 * state.nbytes + 2 * value.nbytes,
        run,
        None,
        {"batch": batch, "code": "float32", "rank": rank},
    )

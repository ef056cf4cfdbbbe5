"""Every kernel's operation on one tiny batch that has what real ones have: sequences of 0, 1,
T - 1, T and T + 1 tokens, padding, new ones, and frames in any order among others' frames.

What an operation gives must not depend on where its frames lie nor on what lies in the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cacheshrink_hybrid.codecs.state_format import StateFormat, StateSegment
from cacheshrink_hybrid.kernels.backend import Backend
from cacheshrink_hybrid.kernels.latents.append import latent_append
from cacheshrink_hybrid.kernels.latents.decode import (
    BlockUp,
    KeyUp,
    LatentRead,
    latent_decode,
)
from cacheshrink_hybrid.kernels.latents.paged_rows import PagedRows
from cacheshrink_hybrid.kernels.latents.prefill import latent_prefill
from cacheshrink_hybrid.kernels.pool_copy import pool_copy
from cacheshrink_hybrid.kernels.states.conv_update_project import ConvPages, conv_update_project
from cacheshrink_hybrid.kernels.states.gdn_replay import DeltaRing, gdn_replay_step
from cacheshrink_hybrid.kernels.states.gdn_step import gdn_step
from cacheshrink_hybrid.kernels.states.mamba1_step import mamba1_step
from cacheshrink_hybrid.kernels.states.pages import StatePages, StatePlace
from cacheshrink_hybrid.kernels.states.reference import read_states, write_states
from cacheshrink_hybrid.kernels.states.replay_ring import InputRing, part_addresses, store_inputs
from cacheshrink_hybrid.kernels.states.ssd_replay import (
    ReplayRing,
    ssd_replay_flush,
    ssd_replay_read,
)
from cacheshrink_hybrid.kernels.states.ssd_step import ssd_step

from .cases import LAYOUTS
from .pools import bytes_of_states, empty_rows, filled_rows, random_latents, row_addresses

T = 8
LENS = [T + 1, 0, 1, T - 1, T]
FRAME_BYTES = 512


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where and in what an operation runs.

    Attributes:
        dtype: of queries and inputs.
        layout: of rows, from `LAYOUTS`.
        codes: of states, one per head.
        frames: seed of the order of the frames.
        poison: what every byte that nobody wrote is; 0xFF is NaN in every float format.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    layout: str = "mixed"
    codes: tuple[str, ...] = ("float16", "int8")
    frames: int = 1
    poison: int = 0xFF

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape).to(self.device, self.dtype)

    def frame_ids(self, count: int, width: int) -> Tensor:
        """Frames of `count` sequences, (count, width) int32, out of half as many again."""
        generator = torch.Generator().manual_seed(self.frames)
        order = torch.randperm(count * width * 3 // 2, generator=generator)
        return order[: count * width].view(count, width).int().to(self.device)

    def arena(self, table: Tensor, frame_bytes: int = FRAME_BYTES) -> Tensor:
        size = table.numel() * 3 // 2 * frame_bytes
        return torch.full((size,), self.poison, dtype=torch.uint8, device=self.device)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an operation gave.

    Attributes:
        outputs: results, and stored states, wherever they lie.
        coded: stored states among them that were rounded to few bits, where the last bit before
            rounding decides; with the largest step of their codes, relative to a head.
        before, after: the arena.
        own: bytes that the operation may write, bool.
    """

    outputs: tuple[Tensor, ...]
    before: Tensor
    after: Tensor
    own: Tensor
    coded: tuple[tuple[Tensor, float], ...] = ()


def _rows(setting: Setting) -> tuple[PagedRows, Tensor, Tensor]:
    return filled_rows(
        LAYOUTS[setting.layout],
        LENS,
        device=setting.device,
        frame_tokens=T,
        outliers=False,
        seed=setting.frames,
        poison=setting.poison,
    )


def _read_only(rows: PagedRows, before: Tensor, *outputs: Tensor) -> Outcome:
    return Outcome(outputs, before, rows.arena, torch.zeros_like(before, dtype=torch.bool))


def absorbed(setting: Setting, backend: Backend) -> Outcome:
    """Fewer heads than a tile has rows, and more splits than some sequences have tiles."""
    rows, table, lens = _rows(setting)
    before, width = rows.arena.clone(), rows.layout.num_channels
    query = setting.randn(len(LENS), 1, 5, width)
    read = LatentRead(key_rank=width, value_rank=width, scale=width**-0.5)
    options = {"num_splits": 2} if backend == "triton" else {}
    return _read_only(
        rows,
        before,
        *latent_decode(query, rows, table, lens, read=read, backend=backend, **options),
    )


def _rebuilt(setting: Setting, backend: Backend, *, per_head: bool) -> Outcome:
    rows, table, lens = _rows(setting)
    before, width, J, D = rows.arena.clone(), rows.layout.num_channels, 2, 12
    key_rank = width // 2 // (4 * J) * 4 * J
    rank = key_rank // J if per_head else key_rank
    angles = torch.arange(32)[:, None] * 0.7 ** torch.arange(4)
    key_up = KeyUp(
        weight=setting.randn(J, D, rank) / rank**0.5,
        bias=setting.randn(J, D),
        cos=angles.cos().to(setting.device),
        sin=angles.sin().to(setting.device),
        per_head=per_head,
    )
    value_rank = width - key_rank
    read = LatentRead(key_rank=key_rank, value_rank=value_rank, scale=D**-0.5, key_up=key_up)
    query = setting.randn(len(LENS), 1, 3 * J, D)
    options = {"num_splits": 2} if backend == "triton" else {}
    return _read_only(
        rows,
        before,
        *latent_decode(query, rows, table, lens, read=read, backend=backend, **options),
    )


def rebuilt_joint(setting: Setting, backend: Backend) -> Outcome:
    return _rebuilt(setting, backend, per_head=False)


def rebuilt_per_head(setting: Setting, backend: Backend) -> Outcome:
    return _rebuilt(setting, backend, per_head=True)


def rotated(setting: Setting, backend: Backend) -> Outcome:
    """Half of a row are keys, of which some channels are rotated."""
    rows, table, lens = _rows(setting)
    before, width, J, D = rows.arena.clone(), rows.layout.num_channels, 2, 12
    key_rank = width // 2
    angles = torch.arange(4)[:, None] * 0.7 ** torch.arange(4)
    block_up = BlockUp(
        weight=setting.randn(J, D, key_rank) / D**0.5,
        mean=setting.randn(J, 16, D),
        cos=angles.cos().to(setting.device),
        sin=angles.sin().to(setting.device),
    )
    read = LatentRead(
        key_rank=key_rank, value_rank=width - key_rank, scale=D**-0.5, block_up=block_up
    )
    query = setting.randn(len(LENS), 1, 3 * J, D)
    options = {"num_splits": 2} if backend == "triton" else {}
    return _read_only(
        rows,
        before,
        *latent_decode(query, rows, table, lens, read=read, backend=backend, **options),
    )


def _in_two_passes(setting: Setting, backend: Backend, **ups: KeyUp | BlockUp) -> Outcome:
    """What one launch would hold, in two passes: with less scratch than all of it takes."""
    rows, table, lens = _rows(setting)
    before, width = rows.arena.clone(), rows.layout.num_channels
    up = next(iter(ups.values()), None)
    read = LatentRead(
        key_rank=width if up is None else up.weight.shape[2],
        value_rank=width // 2,
        scale=width**-0.5,
        **ups,  # type: ignore[arg-type]
    )
    query = setting.randn(len(LENS), 1, 6, read.query_width)
    arguments = query, rows, table, lens
    if backend == "torch":
        return _read_only(rows, before, *latent_decode(*arguments, read=read, backend=backend))
    from cacheshrink_hybrid.kernels.latents.decode.two_passes import latent_decode_in_two_passes

    none = dict.fromkeys(("offset", "query_lens", "first_slots"))
    found = latent_decode_in_two_passes(
        *arguments, read=read, **none, num_splits=2, scratch_bytes=50000
    )
    return _read_only(rows, before, *found)


def absorbed_in_two_passes(setting: Setting, backend: Backend) -> Outcome:
    return _in_two_passes(setting, backend)


def rebuilt_in_two_passes(setting: Setting, backend: Backend) -> Outcome:
    J, D, rank = 2, 12, LAYOUTS[setting.layout].num_channels // 2
    angles = torch.arange(32)[:, None] * 0.7 ** torch.arange(4)
    key_up = KeyUp(
        weight=setting.randn(J, D, rank) / rank**0.5,
        bias=setting.randn(J, D),
        cos=angles.cos().to(setting.device),
        sin=angles.sin().to(setting.device),
    )
    return _in_two_passes(setting, backend, key_up=key_up)


def prefill(setting: Setting, backend: Backend) -> Outcome:
    """Chunks that are all, none, or the end of a sequence."""
    rows, table, lens = _rows(setting)
    before, width = rows.arena.clone(), rows.layout.num_channels
    new = torch.tensor([T + 1, 0, 1, 3, T], dtype=torch.int32, device=setting.device)
    query = setting.randn(len(LENS), T + 1, 5, width)
    read = LatentRead(key_rank=width, value_rank=width, scale=width**-0.5)
    found = latent_prefill(query, rows, table, lens, new, read=read, backend=backend)
    valid = torch.arange(T + 1, device=setting.device) < new[:, None]
    return _read_only(rows, before, *(part[valid] for part in found))


def append(setting: Setting, backend: Backend) -> Outcome:
    """Tokens in any slots, some of them in none."""
    layout = LAYOUTS[setting.layout]
    rows = empty_rows(
        layout, device=setting.device, num_frames=5, frame_tokens=T, poison=setting.poison
    )
    before, count = rows.arena.clone(), 13
    latent = random_latents(count, layout.num_channels).to(setting.device, setting.dtype)
    generator = torch.Generator().manual_seed(setting.frames)
    slots = torch.randperm(5 * T, generator=generator)[:count].to(setting.device)
    slots[[2, 7]] = -1
    latent_append(latent, rows, slots, backend=backend)
    at = row_addresses(rows, slots[slots >= 0])
    own = torch.zeros_like(before, dtype=torch.bool)
    own[at.flatten()] = True
    return Outcome((rows.arena[at],), before, rows.arena, own)


def copy(setting: Setting, backend: Backend) -> Outcome:
    ids = setting.frame_ids(4, 2)
    arena = setting.arena(ids, 48)
    source, target = ids.unbind(dim=1)
    frames = arena.view(-1, 48)
    frames[source.long()] = torch.randint(0, 256, (4, 48), dtype=torch.uint8).to(setting.device)
    before = arena.clone()
    source, target = source.clone(), target.clone()
    source[1] = target[2] = -1
    pool_copy(arena, arena, source, target, frame_bytes=48, backend=backend)
    own = torch.zeros_like(frames, dtype=torch.bool)
    own[target[[0, 3]].long()] = True
    return Outcome((frames[target[[0, 3]].long()],), before, arena, own.flatten())


def convolution(setting: Setting, backend: Backend) -> Outcome:
    """A sequence in place, one that moves, a new one, and padding; three columns before."""
    groups, group_size, channels = 2, 12, 70
    pages = ConvPages(
        arena=torch.empty(0, dtype=torch.uint8, device=setting.device),
        frame_bytes=FRAME_BYTES,
        place=StatePlace.packed(FRAME_BYTES, first_byte=112),
        channels=channels,
        columns=3,
        dtype=setting.dtype,
    )
    ids = setting.frame_ids(5, pages.num_frames)
    arena = setting.arena(ids)
    pages = replace(pages, arena=arena)
    none = torch.full_like(ids[0], -1)
    read = torch.stack([ids[0], ids[1], none, none])
    write = torch.stack([ids[0], ids[2], ids[3], none])
    weight, bias = setting.randn(channels, 4), setting.randn(channels)
    bases = setting.randn(2, groups, group_size, 7)
    shared = {
        "order": ("values", "write", "read"),
        "groups": groups,
        "group_size": group_size,
        "write_basis": bases[0],
        "read_basis": bases[1],
    }
    for step in range(3):
        tables = {"read_table": read if step else torch.full_like(read, -1), "write_table": read}
        conv_update_project(
            setting.randn(4, channels), weight, bias, pages=pages, **tables, **shared,
            backend="torch",
        )  # fmt: skip
    before = arena.clone()
    tables = {"read_table": read, "write_table": write}
    found = conv_update_project(
        setting.randn(4, channels), weight, bias, pages=pages, **tables, **shared, backend=backend
    )
    byte = torch.arange(channels * 3 * setting.dtype.itemsize, device=setting.device)
    frame, offset = pages.place.locate(byte, FRAME_BYTES)
    at = write[:3].long()[:, frame] * FRAME_BYTES + offset
    own = torch.zeros_like(arena, dtype=torch.bool)
    own[at.flatten()] = True
    windows = arena[at].view(setting.dtype)
    return Outcome((*(part for part in found if part is not None), windows), before, arena, own)


P, RANK, RING = 8, 16, 3
CODES = {"float32": 2e-5, "bfloat16": 1e-2, "float16": 2e-3, "int8": 1.7e-2, "float8": 0.13}
"""Codes of states and their steps: the largest difference relative to a head."""


def _pages(
    setting: Setting, parts: dict[str, int] | None = None
) -> tuple[StatePages, dict[str, StatePlace], Tensor, Tensor]:
    """Random states of heads in every code, rings of so many bytes behind them, and read and write
    tables: a sequence in place, one that moves, a new one, and padding."""
    segments = tuple(
        StateSegment(heads=(head,), rank=RANK, code=code) for head, code in enumerate(setting.codes)
    )
    pages = StatePages(
        arena=torch.empty(0, dtype=torch.uint8, device=setting.device),
        frame_bytes=FRAME_BYTES,
        place=StatePlace.packed(FRAME_BYTES, first_byte=48),
        format=StateFormat(P, segments),
    )
    at, places = 48 + -(-pages.format.num_bytes // 16) * 16, {}
    for name, size in (parts or {}).items():
        places[name] = StatePlace.packed(FRAME_BYTES, first_byte=at)
        at += -(-size // 16) * 16
    ids = setting.frame_ids(5, -(-at // FRAME_BYTES))
    pages = replace(pages, arena=setting.arena(ids))
    none = torch.full_like(ids[0], -1)
    read = torch.stack([ids[0], ids[1], none, none])
    write = torch.stack([ids[0], ids[2], ids[3], none])
    write_states(torch.randn(4, len(segments), P, RANK).to(setting.device), pages, read)
    return pages, places, read, write


def _stored(pages: StatePages, table: Tensor) -> tuple[tuple[Tensor, float], ...]:
    states = read_states(pages, table)
    return tuple(
        (states[:, segment.heads[0]], CODES[segment.code]) for segment in pages.format.segments
    )


def _stepped(
    setting: Setting,
    run: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    pages: StatePages,
    read: Tensor,
    write: Tensor,
    backend: Backend,
) -> Outcome:
    before = pages.arena.clone()
    y = run(*inputs, pages=pages, read_table=read, write_table=write, backend=backend)
    own = bytes_of_states(pages, write)
    return Outcome((y,), before, pages.arena, own, _stored(pages, write))


def ssd(setting: Setting, backend: Backend) -> Outcome:
    M = len(setting.codes)
    pages, _, read, write = _pages(setting)
    x, dt = setting.randn(4, M, P), torch.rand(4, M).to(setting.device)
    A = -torch.rand(M).to(setting.device)
    shared = setting.randn(2, 4, 1, RANK)
    return _stepped(setting, ssd_step, (x, dt, A, *shared), pages, read, write, backend)


def gdn(setting: Setting, backend: Backend) -> Outcome:
    M = len(setting.codes)
    pages, _, read, write = _pages(setting)
    key, query = setting.randn(2, 4, 1, RANK) / 4
    value, scalars = setting.randn(4, M, P), torch.rand(2, 4, M).to(setting.device)
    inputs = (key, value, -scalars[0], scalars[1], query)
    return _stepped(setting, gdn_step, inputs, pages, read, write, backend)


def mamba1(setting: Setting, backend: Backend) -> Outcome:
    M = len(setting.codes)
    pages, _, read, write = _pages(setting)
    x, dt = setting.randn(4, M, P), setting.randn(4, M, P).abs()
    A = -torch.rand(M, P, RANK).to(setting.device)
    shared = setting.randn(2, 4, M, RANK)
    return _stepped(setting, mamba1_step, (x, dt, A, *shared), pages, read, write, backend)


def _ring_bytes(pages: StatePages, ring: InputRing, table: Tensor) -> Tensor:
    own = torch.zeros_like(pages.arena, dtype=torch.bool)
    for name in ring.shapes(pages):
        own[part_addresses(pages, ring, name, table[table[:, 0] >= 0]).flatten()] = True
    return own


PENDING = [0, 1, RING, 0]
"""Inputs in the rings: none, some, all; the last sequence is padding."""


def _ring_parts(setting: Setting, *scalars: str) -> dict[str, int]:
    M, item = len(setting.codes), RING * setting.dtype.itemsize
    return {"values": item * M * P, "writes": item * RANK, **dict.fromkeys(scalars, 4 * RING * M)}


def ssd_replay(setting: Setting, backend: Backend) -> Outcome:
    """Reads, and where the ring is full flushes it with the newest input."""
    M = len(setting.codes)
    pages, places, read, write = _pages(setting, _ring_parts(setting, "steps"))
    ring = ReplayRing(length=RING, groups=1, dtype=setting.dtype, **places)
    table = torch.stack([read[0], read[1], write[2], read[3]])
    write_states(torch.randn(4, M, P, RANK).to(setting.device), pages, table)
    pending = torch.tensor(PENDING, dtype=torch.int32, device=setting.device)
    A = -torch.rand(M).to(setting.device)
    for step in range(RING):
        past = {
            "values": setting.randn(4, M, P),
            "writes": setting.randn(4, 1, RANK),
            "steps": torch.rand(4, M).to(setting.device),
        }
        held = torch.where(step < pending, step, RING)
        store_inputs(pages, ring, table, held, past)
    before = pages.arena.clone()
    x, dt = setting.randn(4, M, P), torch.rand(4, M).to(setting.device)
    write_along, read_along = setting.randn(2, 4, 1, RANK)
    shared = {"pages": pages, "ring": ring, "num_pending": pending, "backend": backend}
    y = ssd_replay_read(x, dt, A, write_along, read_along, table=table, **shared)
    full = torch.where((pending == RING)[:, None], table, -1)
    newest = (x, dt, write_along)
    ssd_replay_flush(A, newest=newest, read_table=table, write_table=full, **shared)
    own = bytes_of_states(pages, full) | _ring_bytes(pages, ring, table)
    return Outcome((y,), before, pages.arena, own, _stored(pages, table))


def gdn_replay(setting: Setting, backend: Backend) -> Outcome:
    """A ring that is full goes into the state with the newest input."""
    M = len(setting.codes)
    pages, places, read, write = _pages(setting, _ring_parts(setting, "decays", "betas"))
    ring = DeltaRing(length=RING, groups=1, dtype=setting.dtype, **places)
    table = torch.stack([read[0], read[1], write[2], read[3]])
    write_states(torch.randn(4, M, P, RANK).to(setting.device), pages, table)
    pending = torch.tensor(PENDING, dtype=torch.int32, device=setting.device)

    def inputs() -> dict[str, Tensor]:
        scalars = torch.rand(2, 4, M).to(setting.device)
        return {
            "writes": setting.randn(4, 1, RANK) / 4,
            "values": setting.randn(4, M, P),
            "decays": -scalars[0],
            "betas": scalars[1],
        }

    for step in range(RING):
        store_inputs(pages, ring, table, torch.where(step < pending, step, RING), inputs())
    before = pages.arena.clone()
    y = gdn_replay_step(
        *inputs().values(), setting.randn(4, 1, RANK) / 4, pages=pages, ring=ring, table=table,
        num_pending=pending, backend=backend,
    )  # fmt: skip
    full = torch.where((pending == RING)[:, None], table, -1)
    own = bytes_of_states(pages, full) | _ring_bytes(pages, ring, table)
    return Outcome((y,), before, pages.arena, own, _stored(pages, table))


OPERATIONS: dict[str, Callable[[Setting, Backend], Outcome]] = {
    "latent_append": append,
    "latent_decode absorbed": absorbed,
    "latent_decode rebuilt, joint": rebuilt_joint,
    "latent_decode rebuilt, per head": rebuilt_per_head,
    "latent_decode rotated": rotated,
    "latent_decode absorbed, in two passes": absorbed_in_two_passes,
    "latent_decode rebuilt, in two passes": rebuilt_in_two_passes,
    "latent_prefill": prefill,
    "ssd_step": ssd,
    "ssd_replay": ssd_replay,
    "gdn_step": gdn,
    "gdn_replay": gdn_replay,
    "mamba1_step": mamba1,
    "conv_update_project": convolution,
    "pool_copy": copy,
}

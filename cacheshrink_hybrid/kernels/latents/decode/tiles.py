"""Sizes of the launches of `latent_decode`, chosen from shapes alone: never from lengths, so that
graphs can be replayed; and what is read in one of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ....codecs.row_layout import PLANES, RowLayout

MAX_SPLITS = 64
ONE_LAUNCH_BYTES = 1024
"""Of what one slot brings to products, as long as one launch holds all that comes of it: 512
channels of 16 bits,"""
ONE_LAUNCH_WEIGHTS = 8192
"""and numbers among the weights that one head's keys are rebuilt by: of 64 channels for 128."""


def one_launch_holds(channels: int, own_rank: int, rebuilt: int, itemsize: int) -> bool:
    """Whether one launch holds all that comes of a slot; otherwise rows are read in two passes.

    Args:
        channels: of a tile of latents.
        own_rank: channels that the keys of one head are made of.
        rebuilt: channels of a key that is rebuilt of them, 0 for none.
        itemsize: bytes of a factor of a product.
    """
    room = itemsize * (channels + rebuilt) <= ONE_LAUNCH_BYTES
    return room and own_rank * rebuilt <= ONE_LAUNCH_WEIGHTS


@dataclass(frozen=True, slots=True)
class Tiles:
    """Rows and slots of a tile, and what the compiler is told."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def choose_tiles(num_rows: int, channels: int, layout: RowLayout, *, exact: bool) -> Tiles:
    """Tiles for `num_rows` rows of queries that read the same keys.

    Chosen by compiling: the largest that spill no registers (`scripts.compile_kernels`).

    Args:
        num_rows: tokens x heads.
        channels: channels of a tile of latents and of rebuilt keys together.
        layout: what a row holds.
        exact: whether products are in float32, which the matrix units do not do.
    """
    if exact:
        return Tiles(16, 32, 8, 1)
    block_m = 16 if num_rows <= 16 else 32 if num_rows <= 32 else 64
    # Looking up levels takes registers, most of all for the narrow pieces of several runs.
    looked_up = any(run.kind.bits in PLANES for run in layout.runs)
    if looked_up and (channels > 256 or (block_m == 32 and len(layout.runs) > 1)):
        block_m = 16
    elif channels > 256 and layout.gain_byte is not None:
        block_m = min(block_m, 32)
    if channels <= 128:
        return Tiles(block_m, 64, 8 if block_m == 64 else 4, 2)
    return Tiles(block_m, 32, 8 if channels > 256 or block_m == 64 else 4, 2)


@dataclass(frozen=True, slots=True)
class PassTiles:
    """Of reading in two passes: rows of queries that are absorbed, scored and mixed at a time,
    slots of a tile, and what the compiler is told."""

    absorb_m: int
    score_m: int
    mix_m: int
    block_n: int
    num_warps: int
    num_stages: int


def choose_pass_tiles(
    scored_rows: int,
    mixed_rows: int,
    block_slots: int,
    layout: RowLayout,
    *,
    exact: bool,
    warpgroups: bool,
) -> PassTiles:
    """Tiles where so many rows of queries (token, head) read the same keys, and the same values.

    Chosen by compiling, as those of one launch.

    Args:
        block_slots: of blocks that no tile may pass the end of; 0 for none.
        layout: what a row holds.
        exact: whether products are in float32.
        warpgroups: as `has_warpgroups` of the device; without, tiles are half as long.
    """
    if exact:
        return PassTiles(16, 16, 16, min(32, block_slots or 32), 8, 1)
    looked_up = any(run.kind.bits in PLANES for run in layout.runs)
    score_m = 16 if scored_rows <= 16 else 32 if scored_rows <= 32 or looked_up else 64
    mix_m = 16 if mixed_rows <= 16 else 32 if mixed_rows <= 32 else 64
    block_n = 64 if warpgroups else 32
    return PassTiles(64, score_m, mix_m, min(block_n, block_slots or block_n), 8, 2)


def fitted(tiles: Tiles, frame_tokens: int) -> Tiles:
    """Tiles that lie in one frame, if tiles of 16 slots can; otherwise small ones, because looking
    up a frame for every slot takes registers."""
    common = frame_tokens & -frame_tokens  # the largest power of two that divides it
    return replace(tiles, block_n=min(tiles.block_n, common if common >= 16 else 32))


def choose_splits(programs: int, max_slots: int, block_n: int, num_sms: int) -> int:
    """Shares of a sequence, so that three programs per multiprocessor are there to hide latency."""
    wanted = -(-3 * num_sms // max(programs, 1))
    longest = max(1, max_slots // (4 * block_n))
    return max(1, min(wanted, longest, MAX_SPLITS))

"""Sizes of a launch of `latent_decode`, chosen from shapes alone: never from lengths, so that
graphs can be replayed; and whether a multiprocessor has room for it at all."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ....codecs.row_layout import PLANES, RowLayout

MAX_SPLITS = 64
TILE_ROWS = 64
"""Rows of a tile's slots and queries together, with what is on its way, at the most."""
BESIDE_BYTES = 4096
"""Shared memory that a launch takes beside tiles and weights, at the most."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Rows and slots of a tile, and what the compiler is told."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def choose_tiles(
    num_rows: int, channels: int, layout: RowLayout, *, exact: bool, absorbs: bool = False
) -> Tiles:
    """Tiles for `num_rows` rows of queries that read the same keys.

    Chosen by compiling: the largest that spill no registers (`scripts.compile_kernels`).

    Args:
        num_rows: tokens x heads.
        channels: channels of a tile of latents and of rebuilt keys together.
        layout: what a row holds.
        exact: whether products are in float32, which the matrix units do not do.
        absorbs: whether queries are absorbed anew for each tile.
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
    stages = 1 if looked_up and absorbs else 2
    if channels <= 128:
        return Tiles(block_m, 64, 8 if block_m == 64 else 4, stages)
    return Tiles(block_m, 32, 8 if channels > 256 or block_m == 64 else 4, stages)


def shared_bytes(channels: int, key_rank: int, width: int, itemsize: int) -> int:
    """Shared memory that a launch takes at most: of wide latents almost that much.

    Args:
        channels: channels of a tile of latents.
        key_rank: channels that the keys of one head are made of.
        width: channels of a head's query; 0 where queries were brought into latent space. Keys are
            met by weights (width, key rank), which stay in shared memory.
        itemsize: bytes of a factor of a product.
    """
    return itemsize * (channels * TILE_ROWS + key_rank * width) + BESIDE_BYTES


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

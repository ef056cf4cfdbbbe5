"""Attention over rows of latents, compiled.

Rows of TILE slots, or of a block where keys are stored rotated, are decoded into a buffer that
stays in the core's cache, where they serve as keys and as values.
"""

import numpy as np

from ...host_code import compiled, kept
from .blocks import absorb_in_blocks, add_at, blocks_at_once
from .decoding import decode_block
from .fetching import fetch
from .keys import finish_keys, own_channels
from .lines import VECTOR, lines, up
from .products import mix, products
from .softmax import LOG2_E, NOTHING, weigh

TILE = 64
LEAST_SLOTS = 256
"""Slots of a share, at the least, that another thread is woken for."""


@compiled
def _find_rows(arena, frames, slot, last, size, gains, places, slots, row_gains):
    """Places, slots and gains of the next rows of a sequence, as many as there is room for; those
    that come next are fetched.

    Returns:
        How many there are, and the slot behind them.
    """
    count, room, tokens, gain_byte = 0, len(places), size.frame_tokens, size.gain_byte
    while slot < last and count < room:
        number, token = slot // tokens, slot % tokens
        if token == 0:
            coming = (slot + room) // tokens
            if coming < len(frames) and frames[coming] >= 0:
                at = np.int64(frames[coming]) * size.frame_bytes + size.layer_offset
                fetch(arena, at, tokens * size.row_bytes)
        end, frame = min(last, slot + tokens - token), np.int64(frames[number])
        if frame < 0:
            slot = end
            continue
        at = frame * size.frame_bytes + size.layer_offset + token * size.row_bytes
        for _ in range(min(end - slot, room - count)):
            places[count], slots[count], row_gains[count] = np.uint64(at), slot, np.float32(1)
            if gain_byte >= 0:
                row_gains[count] = gains[arena[np.uint64(at + gain_byte)]]
            count += 1
            slot += 1
            at += size.row_bytes
    return count, slot


@compiled
def _set_lost_aside(tile, count, row_gains, only_floats, lost):
    """A lost token is NaN throughout: its score is to be NaN, and its values are no one's.

    Args:
        lost: 0, or NaN where a row is lost, (TILE,).
    """
    for n in range(count):
        lost[n] = 0
        if np.isnan(row_gains[n]) or (only_floats and np.isnan(tile[n, 0])):
            lost[n] = np.float32(np.nan)
            tile[n] = 0


@compiled
def read_block(
    query,
    offset,
    arena,
    frame_table,
    sequences,
    rows,
    tables,
    weight,
    finish,
    mean,
    reading,
    share,
    out,
    lse,
):
    """`latent_decode`, or a share of its slots.

    Args:
        query: (B, T, H, K) float32, as all floating-point tensors.
        offset: (B, T, H).
        sequences: context_lens, query_lens, first_slots, and row of the angles that each sequence's
            slot 0 is rotated by, (4, B) int32.
        rows: `runs_view` and `shares_view`.
        tables: `row_tables`.
        weight: of rebuilt keys, or of queries that are absorbed block by block, (J, D, rank); of no
            heads where queries meet channels as they are.
        finish: bias (J, D) of the keys, of no heads where they stay as they are; gains of their
            norm (D,), of no channels without one; and cos and sin (slots, rotary dim / 2), of no
            channels without rotation.
        mean: see `absorb_in_blocks`; of no heads where keys are not stored rotated.
        reading: see `READING`.
        share: number of the share, and how many there are.
        out: (B, T, H, Rv), lse: (B, T, H); filled with zeros and -inf.
    """
    runs, shares = rows
    bias, norm, cos, sin = finish
    size, (B, T, H, width) = reading[0], query.shape
    groups, rank, value_rank = size.groups, size.rank, size.value_rank
    heads, num_rows = H // groups, T * H // groups
    in_blocks, block_slots = mean[0].shape[0] > 0, mean[0].shape[2]
    room = block_slots if in_blocks else TILE

    tile = lines(room, size.channels + VECTOR)
    own, keys, scores = lines(room, rank), lines(room, width), lines(num_rows, room)
    asked = np.zeros((groups, num_rows, width), np.float32)
    offsets = np.zeros((groups, num_rows), np.float32)
    sums = np.zeros((groups, num_rows, value_rank), np.float32)
    top, total = np.zeros((2, groups, num_rows), np.float32)
    positions = np.zeros(num_rows, np.int64)
    slots, places = np.zeros(room, np.int64), np.zeros(room, np.uint64)
    row_gains, lost = np.zeros(room, np.float32), np.zeros(room, np.float32)
    rebuilt = 0 if in_blocks else weight.shape[0]
    downs = np.zeros((rebuilt, weight.shape[2], keys.shape[1]), np.float32)
    begun = np.zeros((rebuilt, keys.shape[1]), np.float32)
    for j in range(rebuilt):
        downs[j, :, :width] = weight[j].T
        begun[j, :width] = bias[j]
    ahead = np.int64(blocks_at_once(num_rows // mean[0].shape[0]) if in_blocks else 0)
    turned = np.zeros((num_rows * ahead, width), np.float32)
    absorbed = lines(num_rows * ahead, weight.shape[2])[:, : weight.shape[2]]
    of_mean = np.zeros((num_rows * ahead, block_slots), np.float32)

    for b in range(B):
        context, new = np.int64(sequences[0, b]), np.int64(sequences[1, b])
        last = min(context, frame_table.shape[1] * size.frame_tokens, size.limit)
        first = max(np.int64(sequences[2, b]), 0)
        if size.window:
            first = max(first, context - new - size.window + 1)
        length = up(max(last - first, 0), share[1]) // share[1]
        slot = first + length * share[0]
        last = min(last, slot + length)
        if slot >= last or new <= 0:
            continue
        for j in range(groups):
            for t in range(T):
                for g in range(heads):
                    m = g * T + t
                    positions[m] = context - new + t if t < new else -1
                    asked[j, m] = query[b, t, j * heads + g]
                    offsets[j, m] = offset[b, t, j * heads + g]
        top[:] = NOTHING
        total[:] = 0
        sums[:] = 0
        first_block, num_blocks = np.int64(0), np.int64(0)
        while slot < last:
            block, end = np.int64(0), last
            if in_blocks:
                block = slot // block_slots
                end = min(last, (block + 1) * block_slots)
                if block >= first_block + num_blocks:
                    first_block, num_blocks = (
                        block,
                        min(ahead, (last - 1) // block_slots + 1 - block),
                    )
                    absorb_in_blocks(
                        asked[0], block, num_blocks, weight, mean, turned, absorbed, of_mean
                    )
            count, slot = _find_rows(
                arena, frame_table[b], slot, end, size, tables.gains, places, slots, row_gains
            )
            decode_block(arena, places, count, row_gains, runs, tables, tile)
            _set_lost_aside(tile, count, row_gains, size.only_floats, lost)
            for j in range(groups):
                found = tile
                if shares.shape[0]:
                    own_channels(tile, count, shares, j, own)
                    found = own
                if downs.shape[0]:
                    keys[:count] = begun[j]
                    mix(found, downs[j], rank, 0, keys[:count])
                    found = keys
                if bias.shape[0]:
                    turn = sequences[3, b]
                    finish_keys(found, count, slots, turn, width, norm, size.epsilon, cos, sin)
                if in_blocks:
                    own_rows = slice(block - first_block, num_rows * num_blocks, num_blocks)
                    products(absorbed[own_rows], num_rows, tile, count, rank, scores)
                    add_at(scores, count, slots, block * block_slots, of_mean[own_rows])
                else:
                    products(asked[j], num_rows, found, count, width, scores)
                weigh(
                    scores,
                    count,
                    slots,
                    lost,
                    offsets[j],
                    positions,
                    sums[j],
                    top[j],
                    total[j],
                    size,
                )
                value = size.first_value + j * size.value_share
                mix(scores, tile, count, value, sums[j])
        for j in range(groups):
            for m in range(num_rows):
                t, h = m % T, j * heads + m // T
                if total[j, m] != 0:
                    lse[b, t, h] = (top[j, m] + np.log2(total[j, m])) / LOG2_E
                    out[b, t, h] = sums[j, m] / total[j, m]


@kept
def read_rows(*arguments):
    """`read_block`."""
    read_block(*arguments)

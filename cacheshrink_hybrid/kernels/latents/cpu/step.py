"""Compiled: one layer's step of attention, all that lies between its projections.

Queries are rotated and brought to where they meet channels, rows of the new tokens are written,
rows of all tokens are read, and what was read of them becomes the heads' outputs.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...host_code import compiled, kept
from .blocks import turn_in_blocks
from .products import mix, products
from .reading import read_block
from .writing import write_block

BEGIN, READ, END = 1, 2, 4
"""Parts of a step: before coded rows are read, reading a share of them, and after that."""
WHOLE = BEGIN | READ | END


class StepRoom(NamedTuple):
    """What the parts of a step of n shares hand on: rotated queries (B, T, H, D); queries as coded
    rows are asked (B, T, H, K), and what is added to their products (B, T, H); value channels mixed
    by share (n, B, T, H, Rv); mean values of recent and first exact rows (2, B, T, H, D); and
    log-sum-exps of all these (n + 2, B, T, H)."""

    turned: NDArray
    asked: NDArray
    offset: NDArray
    mixed: NDArray
    means: NDArray
    sums: NDArray


def room_size(num_queries: int, D: int, width: int, value_rank: int, num_shares: int) -> int:
    """Numbers in the room of a step of B * T * H queries of `width` channels K."""
    return num_queries * (3 * D + width + num_shares * value_rank + num_shares + 3)


@compiled
def _step_room(flat, shape, width, value_rank, num_shares):
    """The room of a step in numbers that lie in a row."""
    B, H, T, D = shape
    n = B * T * H
    turned, flat = flat[: n * D].reshape((B, T, H, D)), flat[n * D :]
    asked, flat = flat[: n * width].reshape((B, T, H, width)), flat[n * width :]
    offset, flat = flat[:n].reshape((B, T, H)), flat[n:]
    means, flat = flat[: 2 * n * D].reshape((2, B, T, H, D)), flat[2 * n * D :]
    count = num_shares + 2
    sums, flat = flat[: n * count].reshape((count, B, T, H)), flat[n * count :]
    mixed = flat[: n * num_shares * value_rank].reshape((num_shares, B, T, H, value_rank))
    return StepRoom(turned, asked, offset, mixed, means, sums)


@compiled
def _turn(query, first_new, cos, sin, out):
    """Queries (B, H, T, D) rotated by the angles of their slots, (B, T, H, D)."""
    B, T, H, _ = out.shape
    half = cos.shape[1]
    for b in range(B):
        for t in range(T):
            out[b, t] = query[b, :, t]
            if half and first_new[b] >= 0:
                c, s = cos[first_new[b] + t], sin[first_new[b] + t]
                for h in range(H):
                    x, to = query[b, h, t], out[b, t, h]
                    for k in range(half):
                        to[k] = x[k] * c[k] - x[half + k] * s[k]
                        to[half + k] = x[half + k] * c[k] + x[k] * s[k]


@compiled
def _absorb(query, weight, bias, asked, offset):
    """Queries (B, T, H, D) as key channels see them, with weights (J, D, rank), and what the bias
    (J, D) adds to their products."""
    B, T, H, D = query.shape
    J = weight.shape[0]
    asked[:] = 0
    for b in range(B):
        for t in range(T):
            for j in range(J):
                heads = slice(j * H // J, (j + 1) * H // J)
                mix(query[b, t, heads], weight[j], D, 0, asked[b, t, heads])
            for h in range(H):
                x, y = query[b, t, h], bias[h * J // H]
                total = np.float32(0)
                for d in range(D):
                    total += x[d] * y[d]
                offset[b, t, h] = total


@compiled
def _latents(given, first_new, head_dim, angles, weights):
    """Latents (B * T, R), as they are given (B, T, R), or made of [k; v] (B, T, 2*J*D)."""
    count, width = given.shape[0] * given.shape[1], given.shape[2]
    rank = weights.encoder.shape[0]
    if not rank:
        return given.reshape((count, width))
    turned, latents = np.empty((count, width), np.float32), np.empty((count, rank), np.float32)
    cos, sin = angles.place_cos, angles.place_sin
    turn_in_blocks(given, weights.center, first_new, cos, sin, head_dim, turned)
    products(turned, count, weights.encoder, rank, width, latents)
    return latents


@compiled
def _begin(new, pool, angles, weights, coding, room):
    """Rotate and absorb queries, and write rows of latents and of exact channels."""
    query, first_new, given, channels = new
    arena, rows, forms = pool
    none, turned, asked = np.zeros(0, np.float32), room.turned, room.asked
    _turn(query, first_new, angles.cos, angles.sin, turned)
    room.offset[:] = 0
    if weights.absorbing.shape[0]:
        _absorb(turned, weights.absorbing, weights.offset, asked, room.offset)
    else:
        asked[:] = turned
    latents = _latents(given, first_new, query.shape[3], angles, weights)
    for i in range(3):
        form = forms[i]
        if form.runs.shape[0]:
            if i:
                of_rows, costs = channels.reshape((-1, channels.shape[2])), none
            else:
                of_rows, costs = latents, weights.costs
            write_block(
                of_rows, none, costs, rows[i].slots, arena, form.runs, form.coded, coding,
                form.reading,
            )  # fmt: skip


@compiled
def _read(share, pool, angles, weights, tables, room):
    """Read a share of the coded rows, and with the first one the exact rows."""
    arena, rows, forms = pool
    num_shares = room.mixed.shape[0]
    query, offset, weight, part = room.asked, room.offset, weights.rebuilding, (share, num_shares)
    finish = weights.bias, weights.norm, angles.cos, angles.sin
    mean = weights.mean, angles.block_cos, angles.block_sin
    out, sums = room.mixed[share], room.sums[share]
    for i in range(3):
        if i:
            if share:
                break
            query, offset, part = room.turned, np.zeros_like(room.offset), (0, 1)
            weight, no_gains = np.zeros((0, 0, 0), np.float32), np.zeros(0, np.float32)
            no_bias = np.zeros(weights.value_bias.shape, np.float32)
            finish = no_bias, no_gains, angles.cos, angles.sin
            mean = weight, angles.block_cos, angles.block_sin
            out, sums = room.means[i - 1], room.sums[num_shares + i - 1]
        out[:], sums[:] = 0, -np.inf
        if forms[i].runs.shape[0]:
            read_block(
                query, offset, arena, rows[i].frame_table, rows[i].sequences,
                (forms[i].runs, forms[i].shares), tables, weight, finish, mean,
                forms[i].reading, part, out, sums,
            )  # fmt: skip


@compiled
def _softmax(sums, sink, shares):
    """Shares in the softmax of what log-sum-exps (n,) are of, and of a logit without a value."""
    largest, total = sink, np.float32(0)
    for i in range(sums.shape[0]):
        largest = max(largest, sums[i])
    for i in range(sums.shape[0]):
        shares[i] = 0 if largest == -np.inf else np.exp(sums[i] - largest)
        total += shares[i]
    if sink > -np.inf:
        total += np.exp(sink - largest)
    if total != 0:
        shares /= total


@compiled
def _end(weights, room, out):
    """The heads' outputs (B, T, H, D), of all that takes part in the softmax."""
    B, T, H, D = out.shape
    mixed, means = room.mixed, room.means
    weight, bias = weights.value_up, weights.value_bias
    J, _, rank = weight.shape
    heads, num_shares = H // J, mixed.shape[0]
    shares = np.zeros(num_shares + 2, np.float32)
    values = np.zeros((T * heads, rank), np.float32)
    made = np.zeros((T * heads, D), np.float32)
    for b in range(B):
        for j in range(J):
            for m in range(T * heads):
                t, h = m // heads, j * heads + m % heads
                sink = weights.sinks[h] if weights.sinks.shape[0] else np.float32(-np.inf)
                _softmax(room.sums[:, b, t, h], sink, shares)
                value, to = values[m], out[b, t, h]
                value[:], total = 0, np.float32(0)
                for i in range(num_shares):
                    total += shares[i]
                    for k in range(rank):
                        value[k] += shares[i] * mixed[i, b, t, h, k]
                for k in range(D):
                    to[k] = bias[j, k] * total
                for i in range(2):
                    for k in range(D):
                        to[k] += shares[num_shares + i] * means[i, b, t, h, k]
            products(values, T * heads, weight[j], D, rank, made)
            for m in range(T * heads):
                to = out[b, m // heads, j * heads + m % heads]
                for k in range(D):
                    to[k] += made[m, k]


@kept
def attend_rows(part, share, num_shares, new, pool, angles, weights, tables, room, out):
    """A layer's step, or parts of it.

    Args:
        part: of the step; `BEGIN` comes before every `READ`, and `END` after all of them.
        share, num_shares: which share of the coded rows is read, of how many.
        new: of the new tokens, float32 as all floating-point tensors: queries before rotation
            (B, H, T, D), each sequence's first slot (B,), below 0 for padding, latents (B, T, R)
            or, where there is an encoder, [k; v] (B, T, 2*J*D), and channels of exact rows
            (B, T, 2*J*D).
        pool: its arena, and rows and forms of coded, recent exact and first exact rows, see
            `StepRows` and `RowForm`; forms of no runs where there are none.
        angles, weights: see `StepAngles` and `StepWeights`.
        tables: `coding_tables` and `row_tables`.
        room: numbers for what parts hand on, `room_size` at least.
        out: (B, T, H * D).
    """
    query = new[0]
    B, H, T, D = query.shape
    coding, decoding = tables
    width = D if weights.rebuilding.shape[0] else weights.absorbing.shape[2]
    where = _step_room(room, query.shape, width, weights.value_up.shape[2], num_shares)
    if part & BEGIN:
        _begin(new, pool, angles, weights, coding, where)
    if part & READ:
        _read(share, pool, angles, weights, decoding, where)
    if part & END:
        _end(weights, where, out.reshape((B, T, H, D)))

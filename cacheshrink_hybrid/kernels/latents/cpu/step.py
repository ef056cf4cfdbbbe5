"""Compiled: one layer's step of attention, all that lies between its projections.

Queries are rotated and brought to where they meet channels, rows of the new tokens are written,
rows of all tokens are read, and what was read of them becomes the heads' outputs.
"""

import numpy as np

from ...host_code import compiled, kept
from .products import products
from .reading import VECTOR, read_block, up
from .writing import write_block

BEGIN, READ, END = 1, 2, 4
"""Parts of a step: before coded rows are read, reading a share of them, and after that."""
WHOLE = BEGIN | READ | END


@compiled
def _turn(query, first_new, cos, sin, out):
    """Queries (B, T, H, D) rotated by the angles of their slots."""
    B, T, H, _ = query.shape
    half = cos.shape[1]
    for b in range(B):
        for t in range(T):
            out[b, t] = query[b, t]
            if half and first_new[b] >= 0:
                c, s = cos[first_new[b] + t], sin[first_new[b] + t]
                for h in range(H):
                    x, to = query[b, t, h], out[b, t, h]
                    for k in range(half):
                        to[k] = x[k] * c[k] - x[half + k] * s[k]
                        to[half + k] = x[half + k] * c[k] + x[k] * s[k]


@compiled
def _absorb(query, weight, bias, asked, offset):
    """Queries (B, T, H, D) as key channels see them, with weights (J, D, rank), in the first `rank`
    numbers of `asked`, and what a bias (J, D) adds to their products; of no heads for none."""
    B, T, H, D = query.shape
    J, _, rank = weight.shape
    for b in range(B):
        for t in range(T):
            for h in range(H):
                j, x, to = h * J // H, query[b, t, h], asked[b, t, h]
                to[:rank] = 0
                for d in range(D):
                    row = weight[j, d]
                    for k in range(rank):
                        to[k] += x[d] * row[k]
                if bias.shape[0]:
                    total = np.float32(0)
                    for d in range(D):
                        total += x[d] * bias[j, d]
                    offset[b, t, h] = total


@compiled
def _begin(new, arena, kinds, weights, coding, room):
    """Rotate and absorb queries, and write the new tokens' rows."""
    query, first_new, latents, channels = new
    coded, recent, first = kinds
    none, turned, asked = np.zeros(0, np.float32), room.turned, room.asked
    _turn(query, first_new, weights.cos, weights.sin, turned)
    absorbing, width = weights.absorbing, weights.absorbing.shape[2]
    if absorbing.shape[0]:
        _absorb(turned, absorbing, weights.offset, asked, room.offset)
    asked[..., width:] = turned[..., : asked.shape[3] - width]
    write_block(
        latents, none, weights.costs, coded.slots, arena, coded.form.runs, coded.form.planes,
        coded.form.coded, coding, coded.form.place,
    )  # fmt: skip
    for kind in (recent, first):
        if kind.form.runs.shape[0]:
            write_block(
                channels, none, none, kind.slots, arena, kind.form.runs, kind.form.planes,
                kind.form.coded, coding, kind.form.place,
            )  # fmt: skip


@compiled
def _read(share, arena, kinds, weights, tables, room):
    """Read a share of the coded rows, and with the first one the exact rows."""
    no_weight, none = np.zeros((0, 0, 0), np.float32), np.zeros(0, np.float32)
    no_mean, zeros = (no_weight, weights.cos, weights.cos), np.zeros_like(room.offset)
    coded, recent, first = kinds
    num_shares = room.mixed.shape[0]
    room.mixed[share], room.sums[share] = 0, -np.inf
    finish = weights.bias, weights.norm, weights.cos, weights.sin
    read_block(
        room.asked, room.offset, arena, coded.frame_table, coded.sequences,
        (coded.form.runs, coded.form.shares), tables, weights.rebuilding, finish, weights.mean,
        coded.form.reading, (share, num_shares), room.mixed[share], room.sums[share],
    )  # fmt: skip
    if share:
        return
    room.means[:], room.sums[num_shares:] = 0, -np.inf
    for i, kind in enumerate((recent, first)):
        if kind.form.runs.shape[0]:
            finish = weights.no_bias, none, weights.cos, weights.sin
            read_block(
                room.turned, zeros, arena, kind.frame_table, kind.sequences,
                (kind.form.runs, kind.form.shares), tables, no_weight, finish, no_mean,
                kind.form.reading, (0, 1), room.means[i], room.sums[num_shares + i],
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
    weight, bias = weights.value_up
    J, _, rank = weight.shape
    heads, num_shares = H // J, mixed.shape[0]
    shares = np.zeros(num_shares + 2, np.float32)
    values = np.zeros((up(T * heads, 4), up(rank, VECTOR)), np.float32)
    made = np.zeros((D, up(T * heads, 4)), np.float32)
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
            products(weight[j], D, values, values.shape[0], rank, made)
            for m in range(T * heads):
                to = out[b, m // heads, j * heads + m % heads]
                for k in range(D):
                    to[k] += made[k, m]


@kept
def attend_rows(part, share, new, arena, kinds, weights, tables, room, out):
    """A layer's step, or parts of it.

    Args:
        part: of the step; `BEGIN` comes before every `READ`, and `END` after all of them.
        share: number of the share of the coded rows that is read.
        new: of the new tokens, float32 as all floating-point tensors: queries before rotation
            (B, T, H, D), each sequence's first slot (B,), below 0 for padding, latents (B * T, R),
            and channels of exact rows (B * T, 2*J*D).
        kinds: coded, recent exact and first exact rows, see `StepRows`; exact ones with no runs
            where there are none.
        weights: see `StepWeights`.
        tables: `coding_tables` and `row_tables`.
        room: see `StepRoom`.
        out: (B, T, H, D).
    """
    coding, decoding = tables
    if part & BEGIN:
        _begin(new, arena, kinds, weights, coding, room)
    if part & READ:
        _read(share, arena, kinds, weights, decoding, room)
    if part & END:
        _end(weights, room, out)

"""One step of attention over rows in the pool, by functions compiled for the CPU.

All that lies between a layer's projections is one call of `attend_rows`; with several threads one
for each, and one before and after them. Weights stream through the caches of a CPU between two
layers, so that whatever Python looks at comes from memory: what a layer needs in every step is kept
in the notes of its rows, and what the layers of a step have in common in those of the step.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...kernels.latents.cpu.reading import LEAST_SLOTS
from ...kernels.latents.cpu.row_view import (
    NO_ANGLES,
    NO_BIAS,
    NO_CHANNELS,
    NO_FORM,
    NO_NORM,
    NO_ROWS,
    NO_SINKS,
    NO_WEIGHT,
    RowForm,
    StepAngles,
    StepRows,
    StepWeights,
    exact_form,
    floats,
    read_form,
)
from ...kernels.latents.cpu.step import BEGIN, END, READ, WHOLE, attend_rows, room_size
from ...kernels.latents.cpu.tables import coding_tables, row_tables
from ...kernels.workers import in_parallel, num_shares
from ...linear_map import is_plain
from ...pool.lifetime import FIRST, KINDS, RECENT, TOKENS
from ...pool.memory import RowStep
from .head import LatentHead
from .kernel_view import latent_read, num_pairs, rms_gains, row_layout
from .pool_read import coded_slots, rows_in_pool


def attend_on_cpu(
    head: LatentHead,
    query: Tensor,
    latent: Tensor | None,
    key_value: Tensor | None,
    channels: Tensor | None,
    step: RowStep,
) -> Tensor:
    """Append the rows of T new tokens, and read all rows; heads' outputs (B, T, H*D).

    Args:
        query: before rotation, (B, H, T, D).
        latent: (B, T, R); None where they are made of `key_value` (B, T, 2*J*D), see `encodes`.
        channels: of the tokens' exact rows, (B, T, 2*J*D); None where no token stays exact.
    """
    layer = step.places.notes.get("cpu")
    if layer is None or layer.head is not head or layer.dtype != query.dtype:
        layer = step.places.notes["cpu"] = _Layer(head, step, query)
    alike = layer.kind, step.first_slots, query.shape[2]
    common = step.noted(alike, lambda: _Common(layer, step, query))
    given = key_value if latent is None else latent
    assert given is not None
    B, H, T, D = query.shape
    output = torch.empty(B, T, H * D)
    new = (
        floats(query),
        common.first_new,
        floats(given),
        NO_CHANNELS if channels is None else floats(channels),
    )
    arguments = (
        common.num_shares,
        new,
        (common.arena, common.rows, layer.forms),
        common.angles,
        layer.weights(query, encodes=latent is None),
        common.tables,
        common.room(layer),
        output.numpy(),
    )
    if common.num_shares == 1:
        attend_rows(WHOLE, 0, *arguments)
    else:
        attend_rows(BEGIN, 0, *arguments)
        shares = range(common.num_shares)
        in_parallel([partial(attend_rows, READ, share, *arguments) for share in shares])
        attend_rows(END, 0, *arguments)
    return output if query.dtype == torch.float32 else output.to(query.dtype)


def read_on_cpu(head: LatentHead, query: Tensor, step: RowStep) -> Tensor:
    """Read all rows of a step in which they were appended; heads' outputs (B, t, H*D) of its last
    t queries, before rotation, (B, H, t, D)."""
    made_here = encodes(head, query)
    width = head.width if made_here else head.plan.kv_lora_rank
    no_tokens, no_channels = query.new_empty(len(query), 0, width), query.new_empty(1, 0, 1)
    if made_here:
        return attend_on_cpu(head, query, None, no_tokens, no_channels, step)
    return attend_on_cpu(head, query, no_tokens, None, no_channels, step)


def encodes(head: LatentHead, key_value: Tensor) -> bool:
    """Whether the latents of new [k; v] are made here, so that no layer is called for them: by a
    float32 matrix, where keys are stored rotated."""
    encoder: Any = head.encoder
    if encoder is None or not is_plain(encoder) or encoder.bias is not None:
        return False
    return key_value.dtype == encoder.weight.dtype == torch.float32


class _Common:
    """What layers of a kind have in common in a step.

    Attributes:
        first_new: slot of each sequence's first new token, (B,) int64; below 0 for padding.
        num_shares: into which the coded rows are cut, for as many threads.
        arena, rows, angles, tables: as `attend_rows` takes them.
    """

    def __init__(self, layer: _Layer, step: RowStep, query: Tensor) -> None:
        head = layer.head
        B, H, T, D = query.shape
        lens = step.context_lens.numpy().astype(np.int64)
        self.first_new = lens - T
        self.num_shares = num_shares(int(lens.max()) - head.plan.exact_window, LEAST_SLOTS)
        self.arena = step.arena.numpy()
        self.rows = tuple(_rows(head, step, kind, T) for kind in KINDS)
        self.angles = _angles(head, step, query)
        self.tables = coding_tables(), row_tables()
        self._num_queries, self._head_dim = B * T * H, D
        self._room = np.empty(0, np.float32)

    def room(self, layer: _Layer) -> NDArray:
        """Numbers for what the parts of a layer's step hand on, at least."""
        width, value_rank = layer.query_width, layer.head.plan.value_rank
        size = room_size(self._num_queries, self._head_dim, width, value_rank, self.num_shares)
        if len(self._room) < size:
            self._room = np.empty(size, np.float32)
        return self._room


class _Layer:
    """What is known of a layer in every step over one pool.

    Args:
        like: a tensor of the type and device of queries.

    Attributes:
        dtype: of queries.
        forms: of its rows, by kind.
        query_width: channels K of a query as coded rows are asked.
        kind: layers of which this is equal have a `_Common`.
    """

    def __init__(self, head: LatentHead, step: RowStep, like: Tensor) -> None:
        plan, places = head.plan, step.places.by_kind
        self.head, self.dtype = head, like.dtype
        self.forms = tuple(
            _form(head, step, kind, like) if kind in places else NO_FORM for kind in KINDS
        )
        self.query_width = plan.key_rank if head.absorbs else head.head_dim
        classes = (places[kind].number for kind in KINDS if kind in places)
        # Ranks are not among them: nearly every layer has others.
        sizes = head.num_attention_heads, head.head_dim
        exact = plan.exact_sinks, plan.exact_window
        self.kind = (head.rotary, plan.read_mode, self.dtype, *sizes, *exact, *classes)
        self._weights: StepWeights | None = None
        self._known: tuple[bytes | int, ...] = ()
        self._mean: tuple[bytes, NDArray] = b"", NO_WEIGHT

    def weights(self, like: Tensor, *, encodes: bool) -> StepWeights:
        """As they are now. Where they are float32, what is kept lies in their own memory.

        Args:
            encodes: with those that make latents.
        """
        head = self.head
        made_of = [*head.key_up.parameters(like), *head.value_up.parameters(like)]
        encoding = _encoding(head) if encodes else ()
        others = [x for x in (head.costs, head.sinks, *encoding) if x is not None]
        if head.stores_rotated:
            bias = floats(made_of[1]).tobytes()
            if self._mean[0] != bias:
                self._mean = bias, floats(head.mean_in_block(like)[0].transpose(1, 2))
        known = (self._mean[0], *(x.data_ptr() for x in (*made_of, *others)))
        kept = self._weights
        if kept is None or self._known != known:
            kept = _weights(head, *made_of, mean=self._mean[1], encoding=encoding)
            own = head.key_up.is_plain and head.value_up.is_plain
            made_of += others
            if own and all(x.dtype == torch.float32 and x.is_contiguous() for x in made_of):
                self._weights, self._known = kept, known
        if head.rebuilds_keys and head.key_norm is not None:
            kept = kept._replace(norm=floats(rms_gains(head, like.device)[0]))
        return kept


def _form(head: LatentHead, step: RowStep, kind: str, like: Tensor) -> RowForm:
    """How rows of a kind are written and read."""
    place, exact = step.place(kind), head.exact_codec
    layout = row_layout(head, place.dtype) if kind == TOKENS or exact is None else exact.layout
    rows = rows_in_pool(layout, step.arena, step.frame_bytes, place.lifetime, place.place)
    if kind == TOKENS:
        return read_form(latent_read(head, 1, like), rows)
    return exact_form(
        rows,
        head.num_key_value_heads,
        head.head_dim,
        scale=head.scale,
        softcap=head.softcap,
        window=head.plan.exact_window if kind == RECENT else None,
        limit=head.plan.exact_sinks if kind == FIRST else None,
    )


def _encoding(head: LatentHead) -> tuple[Tensor, Tensor]:
    """The encoder's weight, and the mean of what it encodes."""
    encoder: Any = head.encoder
    assert head.mean is not None
    return encoder.weight, head.mean


def _weights(
    head: LatentHead,
    key_up: Tensor,
    key_bias: Tensor,
    value_up: Tensor,
    value_bias: Tensor,
    *,
    mean: NDArray,
    encoding: tuple[Tensor, ...],
) -> StepWeights:
    """All but gains of a norm; latents are made by `_encoding`, if that is given."""
    heads = head.num_key_value_heads, head.head_dim
    up, bias = (floats(x).reshape(*heads, -1) for x in (key_up, key_bias))
    bias = bias[..., 0]
    return StepWeights(
        encoder=floats(encoding[0]) if encoding else NO_BIAS,
        center=floats(encoding[1]) if encoding else NO_NORM,
        absorbing=up if head.absorbs else NO_WEIGHT,
        offset=bias if head.absorbs else NO_BIAS,
        rebuilding=NO_WEIGHT if head.absorbs else up,
        bias=bias if head.rebuilds_keys else NO_BIAS,
        norm=NO_NORM,
        mean=mean,
        value_up=floats(value_up).reshape(*heads, -1),
        value_bias=floats(value_bias).reshape(heads),
        costs=NO_NORM if head.costs is None else floats(head.costs),
        sinks=NO_SINKS if head.sinks is None else floats(head.sinks),
    )


def _rows(head: LatentHead, step: RowStep, kind: str, num_new: int) -> StepRows:
    """The rows of a kind that new tokens write and read."""
    if kind not in step.places.by_kind:
        return NO_ROWS
    tables = step.tables(kind)
    sequences = _sequences(head, step, kind, num_new)
    return StepRows(tables.slot_mapping.numpy(), tables.frames.numpy(), sequences)


def _sequences(head: LatentHead, step: RowStep, kind: str, num_new: int) -> NDArray:
    """Slots that new tokens read of a kind of rows, as `read_block` takes them: lengths, new
    tokens, first slots, and the slot of the angles that slot 0 is rotated by, (4, B) int32."""
    found = np.zeros((4, len(step.context_lens)), np.int32)
    lens, first = step.context_lens, step.first_slots
    if kind == TOKENS:
        lens, first = coded_slots(head, lens, first)
    found[0], found[1], found[2] = lens, num_new, 0 if first is None else first
    if kind == FIRST:
        # Counted from the first token, and read by queries as if they stood before their window.
        found[0] -= found[2] + head.plan.exact_window
        found[3], found[2] = found[2], 0
    return found


def _angles(head: LatentHead, step: RowStep, like: Tensor) -> StepAngles:
    """Of the slots, and of blocks and places in them where keys are stored rotated."""
    if head.rotary is None:
        return StepAngles(*[NO_ANGLES] * 6)
    pairs, slots = num_pairs(head), head.plan.block_slots
    by_slot = head.rotary.pair_angles(step.num_slots, pairs, like)
    if not head.stores_rotated:
        return StepAngles(floats(by_slot[0]), floats(by_slot[1]), *[NO_ANGLES] * 4)
    by_block = head.rotary.block_angles(step.num_slots, pairs, slots, like)
    by_place = [x[0, :, :pairs] for x in head.rotary.place_angles(0, slots, slots, like)]
    return StepAngles(*[floats(x) for x in (*by_slot, *by_block, *by_place)])

"""What a model stores, tensor by tensor, and where it lies in frames: told by its config and plans,
before it has run.

There is one such layout per model. `generate()` and the engine keep it, `inspect` shows it, and a
checkpoint has its digest.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import NotSupportedError
from ..families import decoder_config, model_spec
from ..latents.attention.cross import CrossAttention
from ..latents.attention.module import LatentAttention
from ..latents.plan import LatentPlan
from ..pool.layout import Layout, compile_layout
from ..pool.lifetime import FIRST, RECENT, TOKENS, LayerRows, RowSet
from ..pool.state_map import StateRows
from ..pool.state_tensors import StateShape
from ..spec import LayerSpec, ModelSpec
from ..states.layout import stored_dtype
from ..states.mixers.mixer import RecurrentMixer
from ..states.plan import StatePlan


@dataclass(frozen=True, slots=True)
class RowShape:
    """What an attention layer stores per token: `width` elements of one type.

    Attributes:
        window, kind, limit: see `LayerRows`.
    """

    layer_idx: int
    width: int
    dtype: torch.dtype
    window: int | None
    kind: str = TOKENS
    limit: int | None = None

    def rows(self) -> LayerRows:
        """Its rows for the layout."""
        return LayerRows(
            layer_idx=self.layer_idx,
            row_bytes=self.width * self.dtype.itemsize,
            window=self.window,
            kind=self.kind,
            limit=self.limit,
        )

    def rounds(self, rows: Tensor) -> bool:
        """Whether rows (..., elements) of numbers would lose precision if they were stored so."""
        floats = rows.is_floating_point() and self.dtype.is_floating_point
        return floats and torch.promote_types(rows.dtype, self.dtype) != self.dtype

    def wastes(self, rows: Tensor) -> bool:
        """Whether rows (..., elements) of numbers are of a narrower type."""
        floats = rows.is_floating_point() and self.dtype.is_floating_point
        return floats and rows.dtype != self.dtype and not self.rounds(rows)

    def check(self, rows: Tensor) -> None:
        """Refuse rows (..., elements) that are no such rows, or would lose precision as such."""
        alike = rows.is_floating_point() == self.dtype.is_floating_point
        if rows.shape[-1] != self.width or not alike or self.rounds(rows):
            raise NotSupportedError(
                f"layer {self.layer_idx} of this cache stores {self.width} elements of "
                f"{self.dtype} per token; got {rows.shape[-1]} of {rows.dtype}. The cache was made "
                "for another model or in another precision; make a new one (make_cache)"
            )


@dataclass(frozen=True, kw_only=True)
class PlannedLayout:
    """What a model stores, and where.

    Attributes:
        layout: frames and places of all rows and states.
        rows: of the attention layers.
        states: tensors of fixed size per sequence, in the order of the layout.
        replay_lengths: of the coded states.
    """

    layout: Layout
    rows: dict[RowSet, RowShape]
    states: tuple[StateShape, ...]
    replay_lengths: frozenset[int] = frozenset()

    @property
    def replay_length(self) -> int:
        """Tokens after which every coded state has been rewritten; sequences whose lengths leave
        the same rest have rings that are filled alike."""
        return math.lcm(*self.replay_lengths)

    def with_row_type(self, dtype: torch.dtype, kept: Collection[int]) -> PlannedLayout:
        """The same with rows of this type in all layers but those that are kept, and those whose
        rows are bytes."""
        rows = {
            row_set: row
            if row_set.layer_idx in kept or not row.dtype.is_floating_point
            else replace(row, dtype=dtype)
            for row_set, row in self.rows.items()
        }
        states = tuple(shape.rows() for shape in self.states)
        layout = _compiled(tuple(row.rows() for row in rows.values()), states)
        return replace(self, layout=layout, rows=rows)


def layout_of(
    model: PreTrainedModel, *, autocast: bool = False, crosses: bool = False
) -> PlannedLayout:
    """What a model stores as it is now: converted or not, in the type of its weights, with
    compression switched off or on.

    Args:
        autocast: it computes under autocast, where some layers give out the narrower type and
            others float32; all that layers give out is stored in float32 then.
        crosses: what it stores of an encoder's output, instead of its own tokens.

    Raises:
        UnsupportedModelError: its config does not tell what it stores.
    """
    modules = list(model.modules())
    latents = {
        module.plan.layer_ids: module.plan
        for module in modules
        if isinstance(module, LatentAttention)
        and isinstance(module, CrossAttention) == crosses
        and not module.compression_disabled
    }
    states = [
        module.state_plan
        for module in modules
        if isinstance(module, RecurrentMixer)
        and module.state_plan is not None
        and not module.compression_disabled
    ]
    spec = model_spec(decoder_config(model.config))
    if crosses:
        assert spec.cross is not None, "the model reads an encoder's output"
        spec = spec.cross
    dtype = torch.float32 if autocast else model.dtype
    return planned_layout(spec, latents.values(), states, dtype=dtype, mixer_dtype=model.dtype)


def planned_layout(
    spec: ModelSpec,
    latents: Iterable[LatentPlan] = (),
    states: Iterable[StatePlan] = (),
    *,
    dtype: torch.dtype,
    mixer_dtype: torch.dtype | None = None,
) -> PlannedLayout:
    """What a model of this spec stores.

    Args:
        latents, states: plans of the layers that are converted; others are as in the source.
        dtype: of what the model's layers give out.
        mixer_dtype: of the weights of compressed mixers, if that is another.

    Raises:
        PlanError: the model remembers nothing.
    """
    by_layer = {idx: latent for latent in latents for idx in latent.layer_ids}
    coded = {state.layer_idx: state for state in states}
    rows = [
        row
        for layer in spec.attention_layers
        for row in _row_shapes(layer, by_layer.get(layer.layer_idx), dtype)
    ]
    shapes = [
        shape
        for layer in spec.state_layers
        for shape in (
            _coded_shapes(coded[layer.layer_idx], mixer_dtype or dtype)
            if layer.layer_idx in coded
            else _source_shapes(layer, dtype)
        )
    ]
    return PlannedLayout(
        layout=_compiled(
            tuple(row.rows() for row in rows), tuple(shape.rows() for shape in shapes)
        ),
        rows={row.rows().row_set: row for row in rows},
        states=tuple(shapes),
        replay_lengths=frozenset(state.replay_length for state in coded.values()),
    )


@lru_cache(maxsize=64)
def _compiled(rows: tuple[LayerRows, ...], states: tuple[StateRows, ...]) -> Layout:
    return compile_layout(rows, states)


def _row_shapes(
    layer: LayerSpec, latent: LatentPlan | None, dtype: torch.dtype
) -> Iterator[RowShape]:
    """Keys and values of all heads, a latent, or a latent's row of bytes, with the exact rows of
    some tokens beside it."""
    assert layer.attention is not None
    layer_idx, window = layer.layer_idx, layer.attention.sliding_window
    if latent is None:
        width = layer.attention.cached_width
    elif latent.coded:
        width, dtype = latent.bytes_per_token, torch.uint8
    else:
        width = latent.kv_lora_rank
    yield RowShape(layer_idx, width, dtype, window)
    if latent is not None and latent.keeps_exact:
        exact = latent.exact_row_bytes
        if latent.exact_window:
            yield RowShape(layer_idx, exact, torch.uint8, latent.exact_window, RECENT)
        if latent.exact_sinks:
            yield RowShape(layer_idx, exact, torch.uint8, None, FIRST, latent.exact_sinks)


def _source_shapes(layer: LayerSpec, dtype: torch.dtype) -> Iterator[StateShape]:
    """As transformers keeps them: W columns in the model's type, the state in float32."""
    state = layer.state
    assert state is not None
    columns = state.conv_channels, state.conv_kernel
    yield StateShape(layer.layer_idx, "conv", 0, columns, dtype)
    if state.recurrent_shape:
        yield StateShape(layer.layer_idx, "recurrent", 0, state.recurrent_shape, torch.float32)


def _coded_shapes(plan: StatePlan, dtype: torch.dtype) -> Iterator[StateShape]:
    """Columns before the convolution, codes, and the inputs in the replay ring."""
    codec = plan.codec()
    dtype = stored_dtype(dtype, codec)
    columns = plan.conv_channels, plan.conv_kernel - 1
    yield StateShape(plan.layer_idx, "conv", 0, columns, dtype)
    yield StateShape(plan.layer_idx, "recurrent", 0, (codec.row_bytes,), torch.uint8, codec)
    if plan.replay_length > 1:
        for number, (width, exact) in enumerate(plan.ring_inputs, start=1):
            kind = torch.float32 if exact else dtype
            shape = plan.replay_length - 1, width
            yield StateShape(plan.layer_idx, "recurrent", number, shape, kind)

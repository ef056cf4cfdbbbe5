"""Attention that stores nothing, and reads what another layer stores."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from ...cache_argument import take_cache
from ...codecs.straight_through import has_gradients
from ...derived_class import Derived
from ...errors import NotSupportedError
from .context import DenseContext, Shared, handed_on
from .expanded_attention import attend_expanded
from .kept_source import KeepsSource
from .parts import AttentionParts
from .rotation import Angles
from .split_heads import split_heads


class ReadingAttention(Derived, KeepsSource):
    """Drop-in replacement of a source's attention that reads keys and values of another layer.

    It has queries and output of its own, which are the source's own modules, and reads the latents
    of that layer by its head: no bytes are its own.

    Args:
        parts: of the module that stores, taken apart.
        layer_idx: of this one.
        keep_source: register the source module as `source_attention`, for `compression_disabled`.

    Attributes:
        reads: cache layer that it reads.
    """

    name_prefix = "Reading"

    def __init__(self, parts: AttentionParts, layer_idx: int, *, keep_source: bool = False) -> None:
        nn.Module.__init__(self)
        own = parts.readers[layer_idx]
        (self.reads,) = parts.layer_ids
        self.config = own.source.config
        self.layer_idx = layer_idx
        self.num_key_value_groups = parts.num_attention_heads // parts.num_key_value_heads
        self.is_causal = True
        self.dropout = own.dropout
        self.q_proj = own.query.as_linear()
        self.q_norm = own.q_norm
        self.o_proj = own.output
        self.residual_dropout = own.residual_dropout
        self.keep_source(own.source if keep_source else None)
        self.train(own.source.training)

    def forward(
        self,
        hidden_states: Tensor,
        *args,
        position_embeddings: Angles | None = None,
        attention_mask: Tensor | None = None,
        shared_kv_states: Shared | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend over what the other layer has stored, the new tokens included.

        Args:
            hidden_states: (B, t, E), after the layer's norm: of all new tokens, or of the last t.
            position_embeddings: cos and sin of these, (B, t, rotary dim) each.
            attention_mask: as the configured attention function takes it.
            shared_kv_states: where the other layer has left it.
            kwargs: the cache, of which nothing is asked, under any name of `CACHE_ARGUMENTS`; and
                what the attention function takes.

        Returns:
            Output (B, t, E), and probabilities (B, H, t, S) where they were formed, else None.

        Raises:
            NotSupportedError: the other layer has left nothing; or rows lie in the pool, and
                gradients are asked for.
        """
        cache = take_cache(kwargs)
        if self.compression_disabled:
            given = {
                "position_embeddings": position_embeddings,
                "attention_mask": attention_mask,
                "shared_kv_states": shared_kv_states,
            }
            return self.of_source(hidden_states, args, cache, given, kwargs)
        if args:
            raise TypeError("ReadingAttention takes its arguments by name, except hidden_states")
        handed = handed_on(shared_kv_states, self.reads)
        head, context = handed.head, handed.context
        query = split_heads(
            self.q_proj(hidden_states), head.head_dim, self.q_norm, head.norm_spans_heads
        )
        weights = None
        if isinstance(context, DenseContext):
            attend = partial(attend_expanded, self, head, **kwargs)
            output, weights = context.read(
                head, query, attention_mask, attend, training=self.training
            )
        else:
            if has_gradients(self, hidden_states):
                raise NotSupportedError(
                    f"layer {self.layer_idx} reads latents of layer {self.reads} by kernels, which "
                    "have no backward pass; decode within torch.no_grad()"
                )
            output = context.read(head, query, position_embeddings)
        output = self.o_proj(output)
        if self.residual_dropout is not None:
            output = self.residual_dropout(output)
        return output, weights

"""What a source model remembers, layer by layer: the nouns that the rest of the package shares.

A `ModelSpec` is read from a Hugging Face config alone (`families.model_spec`); no weights needed.
Symbols: `H` query heads, `J` key/value heads, `D` head dim, `E` hidden size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

BYTES_16BIT = 2
BYTES_32BIT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """Keys and values that one attention layer caches.

    Attributes:
        num_attention_heads: query heads, H.
        num_key_value_heads: key/value heads, J.
        head_dim: D, of keys.
        v_head_dim: Dv, of values; None where they are as wide as keys.
        expanded_width: where the source caches latents, which key and value then are, elements of
            the keys and values of all heads that those of one token stand for; None elsewhere.
        uses_rope: keys are rotated by their position before they are scored.
        sliding_window: tokens a query can see, itself included; None for all.
        in_chunks: of these, only those since the last position that is a multiple of it.
        module_name: path of the attention module in the model. Two layers with one name share it.
    """

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    v_head_dim: int | None = None
    expanded_width: int | None = None
    uses_rope: bool
    sliding_window: int | None
    in_chunks: bool = False
    module_name: str

    @property
    def key_width(self) -> int:
        """Elements of the keys of one token, J * D."""
        return self.num_key_value_heads * self.head_dim

    @property
    def value_width(self) -> int:
        """Elements of the values of one token, J * Dv."""
        return self.num_key_value_heads * (self.v_head_dim or self.head_dim)

    @property
    def cached_width(self) -> int:
        """Elements that one token takes in the source's cache."""
        return self.key_width + self.value_width

    @property
    def bytes_per_token(self) -> int:
        """Bytes that keys and values of one token take at 16 bits per element."""
        return self.cached_width * BYTES_16BIT


@dataclass(frozen=True, slots=True, kw_only=True)
class MixerForm:
    """How a family builds its mixers, where those of one kind differ.

    Attributes:
        output, norm: names of the output projection, and of a delta net's gated norm before it.
        projections: of a delta net's inputs: `apart` (one layer each), `joined` (`in_proj_qkv`
            gives [q | k | v]) or `by_head` (`in_proj_qkvz`, `in_proj_ba`, grouped by key head).
        negative_eigenvalues: a delta net's flag `allow_neg_eigval` lets beta reach to 2.
        multipliers: Mamba-2 scales its input by `ssm_in_multiplier` and what is projected from it
            by `mup_vector`.
        optional_norm: Mamba-2's flag `mamba_rms_norm` says whether there is a gated norm.
        several_scans: Mamba-1 runs `n_mamba_heads` scans side by side, with stacked weights, and
            projects [x | gate] channel by channel.
        inner_norms: Mamba-1 normalises dt, B and C, at full width, before they are used.
    """

    output: str = "out_proj"
    norm: str = "norm"
    projections: str = "apart"
    negative_eigenvalues: bool = False
    multipliers: bool = False
    optional_norm: bool = False
    several_scans: bool = False
    inner_norms: bool = False


PLAIN_FORM = MixerForm()


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSpec:
    """What one recurrent layer keeps per sequence, however long the sequence is.

    The recurrent state has M * P * N elements, the convolution state W columns of its channels.

    Attributes:
        kind: `mamba2`, `mamba` (Mamba-1), `gated_delta_net`, `kimi_delta`, `rg_lru` or
            `short_conv`.
        num_heads: M; value heads of a delta net, 1 for a Mamba-1 that has no heads.
        head_dim: P; width of a head's values.
        state_size: N; state channels (width of a delta net's keys), 0 without recurrent state.
        num_groups: G; heads of one group share what writes and reads the state's channels.
        conv_channels: channels of the short convolution in front.
        conv_kernel: W, its width; a cache of transformers keeps W columns.
        recurrent_shape: axes of the recurrent state in a cache of transformers; empty without one.
        module_name: path of the mixer in the model.
        form: how the mixer is built.
    """

    kind: str
    num_heads: int
    head_dim: int
    state_size: int
    num_groups: int
    conv_channels: int
    conv_kernel: int
    recurrent_shape: tuple[int, ...]
    module_name: str
    form: MixerForm = PLAIN_FORM

    @property
    def recurrent_bytes(self) -> int:
        """Bytes of the recurrent state, which transformers keeps in float32 for every model."""
        return math.prod(self.recurrent_shape) * BYTES_32BIT if self.recurrent_shape else 0

    @property
    def conv_bytes(self) -> int:
        """Bytes of the convolution state at 16 bits per element."""
        return self.conv_channels * self.conv_kernel * BYTES_16BIT

    @property
    def bytes_per_sequence(self) -> int:
        return self.recurrent_bytes + self.conv_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One layer of the cache: attention, a recurrent mixer, both, or nothing.

    Attributes:
        reads: the layer whose keys and values this one's attention reads, of which it stores none;
            None for any other layer.
    """

    layer_idx: int
    attention: AttentionSpec | None
    mixer: str | None
    state: StateSpec | None = None
    reads: int | None = None

    @property
    def bytes_per_token(self) -> int:
        return self.attention.bytes_per_token if self.attention else 0

    @property
    def bytes_per_sequence(self) -> int:
        return self.state.bytes_per_sequence if self.state else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """All layers of one model.

    Attributes:
        model_type: Hugging Face `model_type`.
        layers: one entry per cache layer, in order.
        continues_in_pieces: several tokens may be fed after a cached prefix. False where the source
            model's recurrent scan forgets the cached state unless fed one token at a time.
        cross: what cross-attention caches of every vector that an encoder puts out, layer by layer
            of the decoder; None in a model without an encoder. All else here is of the decoder's
            own tokens.
    """

    model_type: str
    layers: tuple[LayerSpec, ...]
    continues_in_pieces: bool = True
    cross: ModelSpec | None = None

    @property
    def attention_layers(self) -> tuple[LayerSpec, ...]:
        return tuple(layer for layer in self.layers if layer.attention is not None)

    @property
    def caches_latents(self) -> bool:
        """Whether the source caches latents of its own (DeepSeek's attention)."""
        return any(
            layer.attention is not None and layer.attention.expanded_width is not None
            for layer in self.layers
        )

    @property
    def expanded_bytes_per_token(self) -> int:
        """Bytes per token at 16 bits of the keys and values of all heads, which a source that
        caches latents does not keep."""
        return sum(
            BYTES_16BIT * (layer.attention.expanded_width or layer.attention.cached_width)
            for layer in self.attention_layers
            if layer.attention is not None
        )

    @property
    def bytes_per_token(self) -> int:
        """KV bytes per token of the uncompressed model at 16 bits per element."""
        return sum(layer.bytes_per_token for layer in self.layers)

    @property
    def state_layers(self) -> tuple[LayerSpec, ...]:
        return tuple(layer for layer in self.layers if layer.state is not None)

    @property
    def bytes_per_sequence(self) -> int:
        """Bytes of recurrent and convolution states, which do not grow with the tokens."""
        return sum(layer.bytes_per_sequence for layer in self.layers)

    def kv_bytes(self, num_tokens: int) -> int:
        """KV bytes of one sequence of `num_tokens` at 16 bits; windows hold no more than theirs."""
        return sum(
            layer.bytes_per_token * min(num_tokens, layer.attention.sliding_window or num_tokens)
            for layer in self.attention_layers
            if layer.attention is not None
        )

    def readers_of(self, layer_idx: int) -> tuple[int, ...]:
        """Layers that read what an attention layer stores, itself left out."""
        return tuple(layer.layer_idx for layer in self.layers if layer.reads == layer_idx)

    def shared_modules(self) -> dict[str, tuple[LayerSpec, ...]]:
        """Attention layers grouped by the module that serves them, in layer order."""
        groups: dict[str, list[LayerSpec]] = {}
        for layer in self.attention_layers:
            assert layer.attention is not None
            groups.setdefault(layer.attention.module_name, []).append(layer)
        return {name: tuple(layers) for name, layers in groups.items()}

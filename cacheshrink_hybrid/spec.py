"""What a source model remembers, layer by layer: the nouns that the rest of the package shares.

A `ModelSpec` is read from a Hugging Face config alone (`families.model_spec`); no weights needed.
Symbols: `H` query heads, `J` key/value heads, `D` head dim, `E` hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

BYTES_16BIT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """Keys and values that one attention layer caches.

    Attributes:
        num_attention_heads: query heads, H.
        num_key_value_heads: key/value heads, J.
        head_dim: D, of keys and of values.
        uses_rope: keys are rotated by their position before they are scored.
        sliding_window: tokens a query can see, itself included; None for all.
        module_name: path of the attention module in the model. Two layers with one name share it.
    """

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    uses_rope: bool
    sliding_window: int | None
    module_name: str

    @property
    def kv_width(self) -> int:
        """Elements of the keys of one token, J * D; its values have as many."""
        return self.num_key_value_heads * self.head_dim

    @property
    def bytes_per_token(self) -> int:
        """Bytes that keys and values of one token take at 16 bits per element."""
        return 2 * self.kv_width * BYTES_16BIT


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One layer of the cache: attention, a recurrent mixer, both, or nothing."""

    layer_idx: int
    attention: AttentionSpec | None
    mixer: str | None

    @property
    def bytes_per_token(self) -> int:
        return self.attention.bytes_per_token if self.attention else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """All layers of one model.

    Attributes:
        model_type: Hugging Face `model_type`.
        layers: one entry per cache layer, in order.
        continues_in_pieces: several tokens may be fed after a cached prefix. False where the source
            model's recurrent scan forgets the cached state unless fed one token at a time.
    """

    model_type: str
    layers: tuple[LayerSpec, ...]
    continues_in_pieces: bool = True

    @property
    def attention_layers(self) -> tuple[LayerSpec, ...]:
        return tuple(layer for layer in self.layers if layer.attention is not None)

    @property
    def bytes_per_token(self) -> int:
        """KV bytes per token of the uncompressed model at 16 bits per element."""
        return sum(layer.bytes_per_token for layer in self.layers)

    def shared_modules(self) -> dict[str, tuple[LayerSpec, ...]]:
        """Attention layers grouped by the module that serves them, in layer order."""
        groups: dict[str, list[LayerSpec]] = {}
        for layer in self.attention_layers:
            assert layer.attention is not None
            groups.setdefault(layer.attention.module_name, []).append(layer)
        return {name: tuple(layers) for name, layers in groups.items()}

"""Seven hybrid models by their published sizes, for layouts and allocator studies without weights.

Convolution states count the `conv_kernel` - 1 columns that the next token needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..pool.lifetime import LayerRows
    from ..pool.state_map import StateRows

LATENT_STEP = 16
SCALE_GROUP = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceModel:
    """Sizes of one hybrid model.

    Attributes:
        num_attention_layers: layers (or calls of shared blocks) that cache keys and values.
        kv_width: elements of keys plus values of one token in one of them.
        num_mixer_layers: layers with a recurrent state.
        state_elements: elements of one such state.
        conv_channels: channels of its causal convolution, of which three columns are kept.
        window: tokens that attention sees; None for all.
    """

    name: str
    num_attention_layers: int
    kv_width: int
    num_mixer_layers: int
    state_elements: int
    conv_channels: int
    window: int | None = None

    def layer_rows(self, ratio: float = 1.0, element_bytes: int = 2) -> tuple[LayerRows, ...]:
        """Rows of the model as it is (`ratio` 1), or of latents with 1 / `ratio` of the elements.

        Latent widths grow from half to one and a half of their mean over the layers, in steps of
        16 channels, as a global allocation of ranks leaves them.
        """
        from ..pool.lifetime import LayerRows

        mean = self.kv_width / ratio
        rows = []
        for i in range(self.num_attention_layers):
            width = self.kv_width
            if ratio != 1.0:
                share = 0.5 + i / max(1, self.num_attention_layers - 1)
                width = max(LATENT_STEP, round(mean * share / LATENT_STEP) * LATENT_STEP)
            rows.append(LayerRows(layer_idx=i, row_bytes=width * element_bytes, window=self.window))
        return tuple(rows)

    def state_rows(self, codec: str = "int8") -> tuple[StateRows, ...]:
        """States as `int8` codes with a float16 scale for 64 of them, `bf16` or `fp32`; the
        convolution's columns at 16 bits."""
        from ..pool.state_map import StateRows

        rows = []
        groups = self.state_elements // SCALE_GROUP
        element_bytes = {"int8": 1, "bf16": 2, "fp32": 4}[codec]
        for i in range(
            self.num_attention_layers, self.num_attention_layers + self.num_mixer_layers
        ):
            sizes = {"recurrent": (groups, SCALE_GROUP * element_bytes)}
            if codec == "int8":
                sizes["scales"] = (groups, 2)
            sizes["conv"] = (self.conv_channels, 3 * 2)
            rows += [
                StateRows(layer_idx=i, name=name, num_rows=num_rows, row_bytes=row_bytes)
                for name, (num_rows, row_bytes) in sizes.items()
            ]
        return tuple(rows)


REFERENCE_MODELS = (
    ReferenceModel(
        name="Jamba-v0.1",
        num_attention_layers=4,
        kv_width=2 * 8 * 128,
        num_mixer_layers=28,
        state_elements=8192 * 16,
        conv_channels=8192,
    ),
    ReferenceModel(
        name="Zamba2-7B",
        num_attention_layers=13,
        kv_width=2 * 32 * 224,
        num_mixer_layers=81,
        state_elements=112 * 64 * 64,
        conv_channels=7168 + 2 * 2 * 64,
    ),
    ReferenceModel(
        name="Nemotron-H-8B",
        num_attention_layers=4,
        kv_width=2 * 8 * 128,
        num_mixer_layers=24,
        state_elements=128 * 64 * 128,
        conv_channels=8192 + 2 * 8 * 128,
    ),
    ReferenceModel(
        name="Qwen3-Next-80B",
        num_attention_layers=12,
        kv_width=2 * 2 * 256,
        num_mixer_layers=36,
        state_elements=32 * 128 * 128,
        conv_channels=2 * 16 * 128 + 32 * 128,
    ),
    ReferenceModel(
        name="Granite-4.0-H-Small",
        num_attention_layers=4,
        kv_width=2 * 8 * 128,
        num_mixer_layers=36,
        state_elements=128 * 64 * 128,
        conv_channels=8192 + 2 * 128,
    ),
    ReferenceModel(
        name="RecurrentGemma-9B",
        num_attention_layers=12,
        kv_width=2 * 1 * 256,
        num_mixer_layers=26,
        state_elements=4096,
        conv_channels=4096,
        window=2048,
    ),
    ReferenceModel(
        name="Falcon-H1-7B",
        num_attention_layers=44,
        kv_width=2 * 2 * 128,
        num_mixer_layers=44,
        state_elements=24 * 128 * 256,
        conv_channels=3072 + 2 * 256,
    ),
)

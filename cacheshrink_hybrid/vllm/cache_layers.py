"""The rows of a model as vLLM allocates them: a layer of its own for those of each lifetime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
)
from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheLayout, KVCacheSpec

from ..codecs.row_layout import RowLayout
from ..kernels.latents.paged_rows import PagedRows
from .blocks import BlockLayout, BlockSize, exact_size
from .cache_specs import ExactRowsSpec, TokenRowsSpec
from .paged_attention import PagedStep


class PagedStepBuilder(AttentionMetadataBuilder[PagedStep]):
    """From what vLLM says of a forward pass to what our attention needs of it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)  # abstract in the base, which has all that is needed

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> PagedStep:
        common = common_attn_metadata
        starts = common.query_start_loc_cpu[: common.num_reqs + 1]
        return PagedStep(
            query_lens=tuple(starts.diff().tolist()),
            context_lens=common.seq_lens[: common.num_reqs],
            num_slots=common.max_seq_len,
            block_table=common.block_table_tensor[: common.num_reqs],
            slot_mapping=common.slot_mapping[: common.num_actual_tokens],
        )


class LatentRowsBackend(AttentionBackend):
    """Blocks of rows, read by `attend_paged`.

    Attributes:
        bytes_per_token: of the rows of all tokens, all layers together.
    """

    supported_dtypes: ClassVar = [torch.float32, torch.bfloat16, torch.float16]
    bytes_per_token: ClassVar[int]

    @staticmethod
    def get_name() -> str:
        return "LATENT_ROWS"

    @staticmethod
    def get_impl_cls() -> Any:
        raise NotImplementedError("the layer itself reads its rows")

    @staticmethod
    def get_builder_cls() -> type[PagedStepBuilder]:
        return PagedStepBuilder

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        return (KVCacheLayout.LBNHC,)

    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        """What vLLM takes a block for, when it asks how many tokens one must have to be as large as
        a recurrent state; `spec` is that of keys and values of one layer then. A layer's own spec
        stays as it is."""
        if isinstance(spec, (TokenRowsSpec, ExactRowsSpec)):
            return spec
        return TokenRowsSpec.unaligned(spec.block_size, cls.bytes_per_token)


@cache
def rows_backend(bytes_per_token: int) -> type[LatentRowsBackend]:
    """The backend of a model whose tokens take so many bytes."""
    return type("LatentRowsBackend", (LatentRowsBackend,), {"bytes_per_token": bytes_per_token})


class CachedRows(AttentionLayerBase):
    """Rows of all layers that live equally long, which vLLM takes for one layer.

    Args:
        name: in vLLM; has the number of one layer in it.
        layouts: of the rows, by layer.
        elsewhere: bytes of a row by layer, in each process that has other layers.

    Attributes:
        kv_cache: (blocks, 1, block size, bytes of a token's rows), uint8; vLLM puts it here. Only
            where it begins, how many blocks there are, and how far they are apart is of meaning.
    """

    def __init__(
        self,
        name: str,
        layouts: Mapping[int, RowLayout],
        elsewhere: Sequence[Mapping[int, int]] = (),
    ) -> None:
        self.name, self.layouts = name, layouts
        self.row_bytes = {layer: layout.row_bytes for layer, layout in layouts.items()}
        self.stages = self.row_bytes, *elsewhere
        self.kv_cache = torch.empty(0, dtype=torch.uint8)
        self.when_bound: Callable[[], None] = lambda: None

    def bind_kv_cache(self, kv_cache: Tensor) -> None:
        """Take the memory that vLLM allocated."""
        super().bind_kv_cache(kv_cache.view(torch.uint8))
        self.when_bound()

    @property
    def is_bound(self) -> bool:
        return self.kv_cache.ndim == 4

    def blocks(self, layer: int) -> PagedRows:
        """A layer's rows as kernels take them: a block is a frame."""
        num_blocks, _, block_tokens, width = self.kv_cache.shape
        layout, block_bytes = BlockLayout.of(self.row_bytes, block_tokens), self.kv_cache.stride(0)
        assert width >= layout.bytes_per_token and layout.used_bytes <= block_bytes
        return PagedRows(
            arena=self.kv_cache.as_strided((num_blocks * block_bytes,), (1,)),
            layout=self.layouts[layer],
            frame_bytes=block_bytes,
            frame_tokens=block_tokens,
            layer_offset=layout.offsets[layer],
        )


class TokenRows(CachedRows):
    """The rows of all tokens."""

    def get_attn_backend(self) -> type[AttentionBackend]:
        return rows_backend(max(sum(row_bytes.values()) for row_bytes in self.stages))

    def get_kv_cache_spec(self, vllm_config: Any) -> KVCacheSpec:
        return TokenRowsSpec.of(self.block_size(vllm_config))

    def block_size(self, vllm_config: Any) -> BlockSize:
        """Of blocks of as many tokens as vLLM's settings say."""
        return BlockSize.of(self.stages, vllm_config.cache_config.block_size)


class ExactRows(CachedRows):
    """The exact rows of the first tokens and of the most recent ones, in blocks of the size of
    those of `tokens`.

    Args:
        num_sinks, window: the most that a layer has.
    """

    def __init__(
        self,
        name: str,
        layouts: Mapping[int, RowLayout],
        tokens: TokenRows,
        elsewhere: Sequence[Mapping[int, int]] = (),
        *,
        num_sinks: int,
        window: int,
    ) -> None:
        super().__init__(name, layouts, elsewhere)
        self.tokens, self.num_sinks, self.window = tokens, num_sinks, window

    def get_attn_backend(self) -> type[AttentionBackend]:
        return self.tokens.get_attn_backend()

    def get_kv_cache_spec(self, vllm_config: Any) -> KVCacheSpec:
        size = exact_size(self.stages, self.tokens.block_size(vllm_config))
        return ExactRowsSpec.of(size, num_sinks=self.num_sinks, window=self.window)

"""A layer's rows in vLLM's cache: how many bytes a block takes, and a backend that reads blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
)
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheLayout, KVCacheSpec

from ..errors import KernelUnavailableError
from ..kernels.latents.paged_rows import PagedRows
from ..latents.attention.head import LatentHead
from ..latents.attention.kernel_view import row_layout, why_not
from .paged_attention import PagedStep, attend_paged


@dataclass(frozen=True, kw_only=True)
class LatentRowsSpec(FullAttentionSpec):
    """Rows of latents, each of `state_content_bytes`; as many of them as a block has tokens."""

    @classmethod
    def of(cls, row_bytes: int, block_size: int) -> LatentRowsSpec:
        return cls(
            block_size=block_size,
            num_kv_heads=1,
            head_size=row_bytes,
            head_size_v=0,
            state_content_bytes=row_bytes,
            dtype=torch.uint8,
        )


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
    """Blocks of rows, read by `attend_paged`."""

    supported_dtypes: ClassVar = [torch.float32, torch.bfloat16, torch.float16]

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


class LatentRows(AttentionLayerBase):
    """The rows of one layer, which vLLM allocates and hands out in blocks.

    Args:
        writer, reader: see `attend_paged`.
        like: a tensor of the activations' type, on their device.

    Attributes:
        kv_cache: (blocks, 1, block size, row bytes), uint8; vLLM puts it here.
    """

    def __init__(self, name: str, writer: LatentHead, reader: LatentHead, like: Tensor) -> None:
        self.name, self.writer, self.reader, self.like = name, writer, reader, like
        self.layout = row_layout(writer, like.dtype)
        self.kv_cache = torch.empty(0, dtype=torch.uint8)

    def get_attn_backend(self) -> type[AttentionBackend]:
        return LatentRowsBackend

    def get_kv_cache_spec(self, vllm_config: Any) -> KVCacheSpec:
        return LatentRowsSpec.of(self.layout.row_bytes, vllm_config.cache_config.block_size)

    def check(self) -> None:
        """Raise `KernelUnavailableError` if these rows are not read where they lie; to be called
        when weights are there."""
        reason = why_not(self.reader, self.like)
        if reason is not None:
            raise KernelUnavailableError(
                f"{self.name} is not read in vLLM's blocks: {reason}; use cacheshrink-hybrid serve"
            )

    def attend(
        self, query: Tensor, latent: Tensor | None, key_value: Tensor | None, positions: Tensor
    ) -> Tensor:
        """Heads' outputs (N, H*D) in the forward pass that vLLM runs, see `attend_paged`; zeros
        where it only measures memory, and for tokens behind those of requests."""
        output = query.new_zeros(query.shape[0], query.shape[1] * query.shape[2])
        steps = get_forward_context().attn_metadata
        if steps is None:
            return output
        step: PagedStep = steps[self.name]
        count = step.num_tokens
        output[:count] = attend_paged(
            self.writer,
            self.reader,
            query[:count],
            None if latent is None else latent[:count],
            None if key_value is None else key_value[:count],
            positions[:count],
            self.blocks(),
            step,
            backend="triton" if query.device.type == "cuda" else "torch",
        )
        return output

    def blocks(self) -> PagedRows:
        """The rows as kernels take them: a block is a frame."""
        _, _, block_size, row_bytes = self.kv_cache.shape
        assert self.kv_cache.is_contiguous() and row_bytes == self.layout.row_bytes
        return PagedRows(
            arena=self.kv_cache.view(-1),
            layout=self.layout,
            frame_bytes=block_size * row_bytes,
            frame_tokens=block_size,
        )

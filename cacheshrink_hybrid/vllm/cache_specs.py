"""How many bytes vLLM's blocks have, and for how long a request holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.v1.core.kv_cache_utils import resolve_block_hashes
from vllm.v1.core.single_type_kv_cache_manager import SlidingWindowManager
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from .blocks import BlockSize


def _sizes(size: BlockSize) -> dict[str, Any]:
    """Fields of a spec."""
    width = size.bytes_per_token
    padded = size.block_bytes != width * size.block_tokens
    return {
        "block_size": size.block_tokens,
        "num_kv_heads": 1,
        "head_size": width,
        "head_size_v": 0,
        "state_content_bytes": width,
        "page_size_padded": size.block_bytes if padded else None,
        "dtype": torch.uint8,
    }


@dataclass(frozen=True, kw_only=True)
class TokenRowsSpec(FullAttentionSpec):
    """Rows of all tokens of a request."""

    @classmethod
    def of(cls, size: BlockSize) -> TokenRowsSpec:
        return cls(**_sizes(size))

    @classmethod
    def unaligned(cls, num_tokens: int, bytes_per_token: int) -> TokenRowsSpec:
        """Of blocks of so many tokens, with all rows of a token side by side."""
        return cls.of(BlockSize(num_tokens, bytes_per_token, bytes_per_token * num_tokens))


@dataclass(frozen=True, kw_only=True)
class ExactRowsSpec(SlidingWindowSpec):
    """Rows of the most recent tokens of a request, and of its first ones.

    Attributes:
        num_sinks: first tokens.
    """

    num_sinks: int

    @classmethod
    def of(cls, size: BlockSize, *, num_sinks: int, window: int) -> ExactRowsSpec:
        """Of `num_sinks` first tokens, and of `window` tokens, the newest included."""
        # vLLM looks for at least one block of a window where a prefix ends.
        return cls(**_sizes(size), sliding_window=max(window, 2), num_sinks=num_sinks)

    @property
    def sink_blocks(self) -> int:
        """Blocks with first tokens."""
        return -(-self.num_sinks // self.block_size)

    def max_admission_blocks_per_request(
        self, max_in_flight_tokens: int, max_model_len: int
    ) -> int:
        """Most blocks that a request holds: those of the window, and those of its first tokens."""
        window = super().max_admission_blocks_per_request(max_in_flight_tokens, max_model_len)
        return min(window + self.sink_blocks, -(-max_model_len // self.block_size) + 1)


class ExactRowsManager(SlidingWindowManager):
    """A sliding window that never lets go of the blocks with a request's first tokens.

    Where a kept prefix is taken up, it must have both its first tokens and the window before its
    end, so that requests read the same exact rows as if they had computed the prefix themselves.
    """

    def __init__(self, kv_cache_spec: ExactRowsSpec, **kwargs: Any) -> None:
        super().__init__(kv_cache_spec, **kwargs)
        self.sink_blocks = kv_cache_spec.sink_blocks

    def remove_skipped_blocks(
        self,
        request_id: str,
        processed_computed_tokens: int,
        num_prompt_tokens: int | None = None,
    ) -> None:
        skipped = self.get_num_skipped_tokens(processed_computed_tokens) // self.block_size
        self._remove_blocks_in_range(request_id, self.sink_blocks, skipped)

    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        num_tokens: int,
        new_computed_blocks: Sequence[Any],
        total_computed_tokens: int,
        *args: Any,
        **kwargs: Any,
    ) -> int:
        count = super().get_num_blocks_to_allocate(
            request_id, num_tokens, new_computed_blocks, total_computed_tokens, *args, **kwargs
        )
        # Taking a kept block up takes it from those that are free, too.
        first = self._first_blocks(new_computed_blocks, total_computed_tokens)
        return count + self._get_num_evictable_blocks(first)

    def add_local_computed_blocks(
        self,
        request_id: str,
        new_computed_blocks: Sequence[Any],
        num_local_computed_tokens: int,
        num_external_computed_tokens: int,
    ) -> None:
        counts = num_local_computed_tokens, num_external_computed_tokens
        super().add_local_computed_blocks(request_id, new_computed_blocks, *counts)
        first = self._first_blocks(new_computed_blocks, sum(counts))
        self.block_pool.touch(first)
        self.req_to_blocks[request_id][: len(first)] = first

    def _first_blocks(self, blocks: Sequence[Any], num_computed_tokens: int) -> Sequence[Any]:
        """Those blocks of a kept prefix with first tokens that a sliding window would skip."""
        skipped = self.get_num_skipped_tokens(num_computed_tokens) // self.block_size
        return blocks[: min(self.sink_blocks, skipped)]

    @classmethod
    def find_longest_cache_hit(
        cls,
        block_hashes: Any,
        max_length: int,
        kv_cache_group_ids: list[int],
        block_pool: Any,
        kv_cache_spec: Any,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[tuple[list[Any], ...], int]:
        found, length = super().find_longest_cache_hit(
            block_hashes,
            max_length,
            kv_cache_group_ids,
            block_pool,
            kv_cache_spec,
            *args,
            **kwargs,
        )
        hashes = resolve_block_hashes(
            block_hashes, block_pool.hash_block_size, kv_cache_spec.block_size
        )
        for place in range(min(kv_cache_spec.sink_blocks, len(found[0]))):
            kept = block_pool.get_cached_block(hashes[place], kv_cache_group_ids)
            if kept is None:
                return tuple([] for _ in kv_cache_group_ids), 0
            for blocks, block in zip(found, kept, strict=True):
                blocks[place] = block
        return found, length

    @classmethod
    def reachable_block_mask(
        cls, start_block: int, end_block: int, alignment_tokens: Any, kv_cache_spec: Any, **kwargs
    ) -> list[bool] | None:
        mask = super().reachable_block_mask(
            start_block=start_block,
            end_block=end_block,
            alignment_tokens=alignment_tokens,
            kv_cache_spec=kv_cache_spec,
            **kwargs,
        )
        if mask is not None:
            for place in range(start_block, min(end_block, kv_cache_spec.sink_blocks)):
                mask[place - start_block] = True
        return mask


def register_specs() -> None:
    """Tell vLLM who manages the blocks of these specs. May be called any number of times."""
    # Of a registry that has anything in it, vLLM thinks that it has its own specs, too.
    KVCacheSpecRegistry._ensure_registered()
    KVCacheSpecRegistry.register(ExactRowsSpec, manager_class=ExactRowsManager)

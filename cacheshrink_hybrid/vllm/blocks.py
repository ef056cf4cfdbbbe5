"""Where the rows of a model's layers lie in a block of vLLM.

vLLM cuts its memory into equal blocks, which any group of layers may hold. Two groups hold rows: of
all tokens, and exact ones of the first and the most recent tokens. In both a block has the rows of
all layers, those of one layer side by side, so that any widths of rows share a block without a gap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import NotSupportedError

ALIGNMENT = 16
"""Rows of a layer begin at a multiple of so many bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLayout:
    """Rows of some layers in a block.

    Attributes:
        block_tokens: tokens whose rows are in a block.
        row_bytes: bytes of a row, by layer.
        offsets: first byte of a layer's rows in a block, by layer.
        used_bytes: of a block.
    """

    block_tokens: int
    row_bytes: Mapping[int, int]
    offsets: Mapping[int, int]
    used_bytes: int

    @classmethod
    def of(cls, row_bytes: Mapping[int, int], block_tokens: int) -> BlockLayout:
        """Of layers with rows of so many bytes, in blocks of so many tokens."""
        offsets, offset = {}, 0
        for layer, width in row_bytes.items():
            offsets[layer] = offset
            offset += -(-block_tokens * width // ALIGNMENT) * ALIGNMENT
        return cls(
            block_tokens=block_tokens, row_bytes=row_bytes, offsets=offsets, used_bytes=offset
        )

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's rows."""
        return sum(self.row_bytes.values())


@dataclass(frozen=True, slots=True)
class BlockSize:
    """What vLLM is told of a block, in all processes alike.

    Processes that have different layers of a model, as in a pipeline, take the same blocks for the
    same tokens: each has the size of those of the process with the most bytes.

    Attributes:
        block_tokens: tokens whose rows are in a block.
        bytes_per_token: bytes of one token's rows, where they are most.
        block_bytes: of a block.
    """

    block_tokens: int
    bytes_per_token: int
    block_bytes: int

    @classmethod
    def of(cls, stages: Sequence[Mapping[int, int]], block_tokens: int) -> BlockSize:
        """Of processes that have rows of so many bytes, by layer, in blocks of so many tokens."""
        layouts = [BlockLayout.of(row_bytes, block_tokens) for row_bytes in stages]
        return cls(
            block_tokens,
            max(layout.bytes_per_token for layout in layouts),
            max(layout.used_bytes for layout in layouts),
        )


def exact_size(stages: Sequence[Mapping[int, int]], tokens: BlockSize) -> BlockSize:
    """Exact rows of so many bytes in blocks of the size of `tokens`: of as many tokens as fit, and
    which divide those of a block of coded rows, so that both can be found by the same prefixes.

    Args:
        stages: bytes of a row by layer, in each process.

    Raises:
        NotSupportedError: those of one token do not fit.
    """
    whole = tokens.block_tokens
    for count in range(whole, 0, -1):
        size = BlockSize.of(stages, count)
        if whole % count == 0 and size.block_bytes <= tokens.block_bytes:
            return replace(size, block_bytes=tokens.block_bytes)
    one = BlockSize.of(stages, 1).block_bytes
    least = -(-one // tokens.bytes_per_token)
    raise NotSupportedError(
        f"a block of {whole} tokens has {tokens.block_bytes} bytes, and the exact rows of one "
        f"token {one}; give --block-size {-(-least // 16) * 16}"
    )

"""Where the rows of a model's layers lie in a block of vLLM.

vLLM cuts its memory into equal blocks, which any group of layers may hold. Two groups hold rows: of
all tokens, and exact ones of the first and the most recent tokens. In both a block has the rows of
all layers, those of one layer side by side, so that any widths of rows share a block without a gap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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


def exact_layout(row_bytes: Mapping[int, int], tokens: BlockLayout) -> BlockLayout:
    """Exact rows of so many bytes in blocks of the size of `tokens`: of as many tokens as fit, and
    which divide those of a block of coded rows, so that both can be found by the same prefixes.

    Raises:
        NotSupportedError: those of one token do not fit.
    """
    whole = tokens.block_tokens
    for count in range(whole, 0, -1):
        layout = BlockLayout.of(row_bytes, count)
        if whole % count == 0 and layout.used_bytes <= tokens.used_bytes:
            return layout
    least = -(-BlockLayout.of(row_bytes, 1).used_bytes // tokens.bytes_per_token)
    raise NotSupportedError(
        f"a block of {whole} tokens has {tokens.used_bytes} bytes, and the exact rows of one token "
        f"{BlockLayout.of(row_bytes, 1).used_bytes}; give --block-size {-(-least // 16) * 16}"
    )

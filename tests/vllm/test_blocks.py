"""Rows of all layers lie in a block, apart from each other, and exact ones in as large a block."""

from __future__ import annotations

import pytest

from cacheshrink_hybrid.errors import NotSupportedError
from cacheshrink_hybrid.vllm.blocks import ALIGNMENT, BlockLayout, exact_layout

ROWS = {0: 190, 1: 77, 5: 192}


@pytest.mark.parametrize("tokens", [1, 3, 16, 128])
def test_layers_lie_apart(tokens: int) -> None:
    layout = BlockLayout.of(ROWS, tokens)
    end = 0
    for layer, width in ROWS.items():
        assert layout.offsets[layer] >= end
        assert layout.offsets[layer] % ALIGNMENT == 0
        end = layout.offsets[layer] + tokens * width
    assert end <= layout.used_bytes < end + ALIGNMENT


def test_whole_multiples_have_no_gaps() -> None:
    layout = BlockLayout.of(ROWS, 32)
    assert layout.used_bytes == 32 * layout.bytes_per_token == 32 * sum(ROWS.values())


@pytest.mark.parametrize(
    ("width", "block_tokens", "due"), [(160, 16, 16), (640, 16, 4), (700, 16, 2), (2560, 16, 1)]
)
def test_exact_rows_of_as_many_tokens_as_fit(width: int, block_tokens: int, due: int) -> None:
    tokens = BlockLayout.of({0: 160, 1: 160}, block_tokens)
    exact = exact_layout({0: width, 1: width}, tokens)
    assert exact.block_tokens == due
    assert exact.used_bytes <= tokens.used_bytes


def test_block_sizes_divide_each_other() -> None:
    tokens = BlockLayout.of({0: 160}, 48)
    assert exact_layout({0: 1000}, tokens).block_tokens == 6  # 7 would fit


def test_blocks_that_are_too_small_are_refused() -> None:
    tokens = BlockLayout.of({0: 160}, 16)
    with pytest.raises(NotSupportedError, match=r"give --block-size 32$"):
        exact_layout({0: 3000}, tokens)
    assert exact_layout({0: 3000}, BlockLayout.of({0: 160}, 32)).block_tokens == 1

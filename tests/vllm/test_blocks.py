"""Rows of all layers lie in a block, apart from each other, and exact ones in as large a block."""

from __future__ import annotations

import pytest

from cacheshrink_hybrid.errors import NotSupportedError
from cacheshrink_hybrid.vllm.blocks import ALIGNMENT, BlockLayout, BlockSize, exact_size

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
    tokens = BlockSize.of([{0: 160, 1: 160}], block_tokens)
    exact = exact_size([{0: width, 1: width}], tokens)
    assert exact.block_tokens == due
    assert exact.block_bytes == tokens.block_bytes >= due * exact.bytes_per_token


def test_block_sizes_divide_each_other() -> None:
    tokens = BlockSize.of([{0: 160}], 48)
    assert exact_size([{0: 1000}], tokens).block_tokens == 6  # 7 would fit


def test_blocks_that_are_too_small_are_refused() -> None:
    tokens = BlockSize.of([{0: 160}], 16)
    with pytest.raises(NotSupportedError, match=r"give --block-size 32$"):
        exact_size([{0: 3000}], tokens)
    assert exact_size([{0: 3000}], BlockSize.of([{0: 160}], 32)).block_tokens == 1


@pytest.mark.parametrize("block_tokens", [1, 5, 16])
def test_blocks_have_room_for_the_rows_of_every_process(block_tokens: int) -> None:
    """The process with the longest rows, and the one with the most gaps, may be two."""
    stages = [{0: 32, 1: 33}, {2: 3, 5: 5, 7: 1, 8: 7, 9: 2}, {3: 17}]
    size = BlockSize.of(stages, block_tokens)
    layouts = [BlockLayout.of(row_bytes, block_tokens) for row_bytes in stages]
    assert size.bytes_per_token == 65
    assert size.block_bytes == max(layout.used_bytes for layout in layouts)
    assert size == BlockSize.of(stages[::-1], block_tokens)
    exact = exact_size([{0: 40}, {2: 50, 5: 60}, {}], BlockSize.of(stages, 16))
    assert exact.bytes_per_token == 110 and exact.block_tokens == 8

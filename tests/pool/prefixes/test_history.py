"""Where texts of earlier requests part from a prompt, and what is forgotten of them."""

from __future__ import annotations

import numpy as np
import pytest

from cacheshrink_hybrid.pool.prefixes.history import TOKENS_PER_FRAME, TextHistory


def history_of(*texts: list[int], num_tokens: int = 64 * TOKENS_PER_FRAME) -> TextHistory:
    made = TextHistory(num_tokens)
    for text in texts:
        made.add(np.array(text))
    return made


@pytest.mark.parametrize(
    ("texts", "prompt", "parting"),
    [
        ([], [1, 2, 3], 0),
        ([[1, 2, 3, 4]], [9, 2, 3], 0),
        ([[1, 2, 3, 4]], [1, 2, 9, 9], 2),
        ([[1, 2, 3, 4]], [1, 2, 3, 4, 5], 0),  # goes on from its end
        ([[1, 2, 3, 4]], [1, 2, 3], 0),  # is its beginning
        ([[1, 2, 3, 4], [1, 2, 8, 8]], [1, 2, 3, 4, 5], 2),  # the first goes on, others parted
        ([[1, 2, 3, 4], [1, 2, 8, 8]], [1, 2], 0),  # of which the last token is computed anyway
        ([[1, 2, 3, 4], [1, 2, 8, 8]], [1, 2, 5], 2),
        ([[1, 2, 3, 4], [1, 2, 3, 4, 5, 6]], [1, 2, 3, 4, 5, 6, 7], 0),
        ([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 9]], [1, 2, 3, 4, 7], 4),
    ],
)
def test_where_texts_part(texts: list[list[int]], prompt: list[int], parting: int) -> None:
    assert history_of(*texts).parting(prompt) == parting


def test_as_many_tokens_as_asked_for_are_remembered() -> None:
    """The texts that nothing was like for the longest go; one that is too long is left out."""
    T = TOKENS_PER_FRAME
    texts = [[number] * 2 * T for number in range(5)]
    made = history_of(*texts[:3], texts[0], *texts[3:], num_tokens=7 * T)
    ends = [[number] * T + [9, 9] for number in range(5)]
    known = [made.parting(end) for end in ends]
    assert known == [T, 0, 0, T, T]
    made.add([7] * 8 * T)
    assert [made.parting(end) for end in ends] == known and made.parting([7, 7, 9]) == 0

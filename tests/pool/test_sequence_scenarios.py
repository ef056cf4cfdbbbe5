"""Short stories of sequences with what each query may see, written out by hand.

A token's key is a small number, its row one byte. The story says which keys each new token sees, in
the order of their positions, itself last. The stories are those by which key-value caches of other
engines are tested: windows, shared prefixes, removal at the end, full caches.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from cacheshrink_hybrid.errors import CacheFullError, SequenceError
from cacheshrink_hybrid.pool import arena
from cacheshrink_hybrid.pool.frame_pool import FramePool
from cacheshrink_hybrid.pool.layout import compile_layout
from cacheshrink_hybrid.pool.lifetime import LayerRows
from cacheshrink_hybrid.pool.state_map import StateRows
from cacheshrink_hybrid.pool.store import SequenceStore


class Story:
    """A store of one layer whose rows are single bytes, in frames of eight tokens."""

    def __init__(
        self,
        *,
        window: int | None = None,
        chunk: int | None = None,
        history: int = 0,
        num_frames: int = 16,
        state: bool = False,
    ) -> None:
        self.chunk = chunk
        window = chunk if window is None else window
        self.window = window
        states = [StateRows(layer_idx=1, name="sum", num_rows=1, row_bytes=8)] if state else []
        layout = compile_layout(
            [LayerRows(layer_idx=0, row_bytes=32, window=window)], states, tokens_per_frame=8
        )
        self.pool = FramePool(num_frames, layout.frame_bytes, poison=True)
        self.store = SequenceStore(layout, self.pool, history=history)
        self.lifetime = layout.classes[0]

    def step(self, **keys: Sequence[int]) -> dict[str, list[list[int]]]:
        """Append these keys per sequence; returns what each new token sees, per sequence."""
        for name in keys:
            if name not in self.store:
                self.store.create(name)
        names = list(keys)
        self.store.reserve(names, [len(keys[name]) for name in names])
        view = arena.row_view(self.pool, self.lifetime, 0)
        seen = {}
        for name in names:
            begin, count = self.store.num_tokens(name), len(keys[name])
            rows = torch.tensor(keys[name], dtype=torch.uint8)[:, None].expand(-1, view.shape[2])
            frames = self.store.frame_table([name])[0].long()
            arena.write_rows(view, frames, begin, rows)
            seen[name] = [
                self._keys(name, self._first(position), position + 1)
                for position in range(begin, begin + count)
            ]
        self.store.commit(names)
        self.store.check_integrity()
        return seen

    def _first(self, position: int) -> int:
        if self.chunk is not None:
            return position - position % self.chunk
        return 0 if self.window is None else max(0, position + 1 - self.window)

    def _keys(self, name: str, begin: int, end: int) -> list[int]:
        frames = self.store.frame_table([name])[0].long()
        view = arena.row_view(self.pool, self.lifetime, 0)
        return arena.read_rows(view, frames, begin, end)[:, 0].tolist()

    def stored(self, name: str) -> list[int]:
        return self._keys(name, self.store.first_position(name, 0), self.store.num_tokens(name))


def test_tokens_see_what_came_before() -> None:
    story = Story()
    assert story.step(a=[11, 12, 13, 14]) == {"a": [[11], [11, 12], [11, 12, 13], [11, 12, 13, 14]]}
    assert story.step(a=[15]) == {"a": [[11, 12, 13, 14, 15]]}


def test_a_window_of_two() -> None:
    story = Story(window=2)
    assert story.step(a=[1, 2, 3, 4]) == {"a": [[1], [1, 2], [2, 3], [3, 4]]}
    assert story.step(a=[5, 6]) == {"a": [[4, 5], [5, 6]]}
    assert story.stored("a") == [4, 5, 6]


def test_windows_of_sequences_in_separate_batches() -> None:
    story = Story(window=2)
    assert story.step(a=[1, 2]) == {"a": [[1], [1, 2]]}
    assert story.step(a=[3, 4]) == {"a": [[2, 3], [3, 4]]}
    assert story.step(b=[5, 6]) == {"b": [[5], [5, 6]]}
    assert story.step(b=[7, 8]) == {"b": [[6, 7], [7, 8]]}
    assert story.step(a=[9, 10]) == {"a": [[4, 9], [9, 10]]}
    assert story.stored("a") == [4, 9, 10]
    assert story.stored("b") == [6, 7, 8]


def test_a_window_with_history() -> None:
    story = Story(window=2, history=2)
    story.step(a=[1, 2, 3, 4])
    assert story.step(a=[5, 6]) == {"a": [[4, 5], [5, 6]]}
    assert story.stored("a") == [2, 3, 4, 5, 6]


def test_chunks_of_two() -> None:
    story = Story(chunk=2)
    assert story.step(a=[1, 2, 3, 4]) == {"a": [[1], [1, 2], [3], [3, 4]]}
    assert story.step(a=[5, 6, 7]) == {"a": [[5], [5, 6], [7]]}
    assert story.step(a=[8, 9]) == {"a": [[7, 8], [9]]}


def test_chunks_that_nobody_sees_again_leave_their_frames() -> None:
    story = Story(chunk=8, num_frames=3)
    for begin in range(0, 96, 4):
        keys = list(range(begin, begin + 4))
        seen = [list(range(key - key % 8, key + 1)) for key in keys]
        assert story.step(a=keys) == {"a": seen}
        assert story.pool.num_held <= 2
    assert resumable(story, 96) == [0, *range(92, 97)]


def test_sequences_do_not_see_each_other() -> None:
    story = Story()
    assert story.step(a=[1, 2], b=[3, 4]) == {"a": [[1], [1, 2]], "b": [[3], [3, 4]]}
    assert story.step(a=[5], b=[6]) == {"a": [[1, 2, 5]], "b": [[3, 4, 6]]}


def test_removal_at_the_end() -> None:
    story = Story()
    story.step(a=[1, 2], b=[3, 4])
    story.store.remove("a", 1)
    assert story.step(a=[5], b=[6]) == {"a": [[1, 5]], "b": [[3, 4, 6]]}


def test_a_shared_prefix() -> None:
    story = Story()
    story.step(a=[1, 2, 3, 4])
    story.store.copy_prefix("a", "b", 2)
    assert story.step(b=[5, 6]) == {"b": [[1, 2, 5], [1, 2, 5, 6]]}
    assert story.stored("a") == [1, 2, 3, 4]


def resumable(story: Story, last: int) -> list[int]:
    return [p for p in range(last + 1) if story.store.can_resume("a", p)]


def test_resuming_in_a_window() -> None:
    story = Story(window=5)
    story.step(a=[1, 2, 3, 4, 5])
    assert resumable(story, 5) == [0, 1, 2, 3, 4, 5]
    story.step(a=[6])
    # The next token, at 6, sees four tokens before it; going back to 5 lacks the first of them.
    assert resumable(story, 6) == [0, 5, 6]
    story.step(a=[7])
    assert resumable(story, 7) == [0, 6, 7]


def test_resuming_in_a_window_with_history() -> None:
    story = Story(window=5, history=1)
    story.step(a=[1, 2, 3, 4, 5, 6, 7])
    story.step(a=[8])
    assert resumable(story, 8) == [0, 6, 7, 8]


def test_removal_then_many_more() -> None:
    story = Story(num_frames=2)
    story.step(a=list(range(101, 117)))
    story.store.remove("a", 13)
    expected = list(range(101, 114))
    assert story.stored("a") == expected
    assert story.step(a=[17, 18, 19])["a"][-1] == [*expected, 17, 18, 19]


def test_a_full_cache_recovers() -> None:
    story = Story(num_frames=1)
    story.step(a=[1, 2, 3, 4, 5, 6, 7, 8])
    with pytest.raises(CacheFullError):
        story.step(a=[9])
    assert story.stored("a") == [1, 2, 3, 4, 5, 6, 7, 8]
    story.store.remove("a", 6)
    assert story.step(a=[10, 11])["a"][-1] == [1, 2, 3, 4, 5, 6, 10, 11]


def test_a_batch_is_refused_as_a_whole() -> None:
    story = Story(num_frames=3)
    story.step(a=list(range(9)))
    with pytest.raises(CacheFullError):
        story.step(a=[9], b=list(range(9)))
    assert story.stored("a") == list(range(9))
    assert story.store.num_tokens("b") == 0
    assert story.step(b=[7]) == {"b": [[7]]}


def test_removing_a_shared_tail_keeps_the_other_owner() -> None:
    story = Story()
    story.step(a=[1, 2, 3, 4])
    story.store.fork("a", "b")
    story.store.remove("a", 2)
    assert story.step(a=[9]) == {"a": [[1, 2, 9]]}
    assert story.step(b=[10]) == {"b": [[1, 2, 3, 4, 10]]}


def test_a_taken_name_is_not_overwritten() -> None:
    story = Story()
    story.step(a=[1, 2, 3], b=[4, 5, 6])
    with pytest.raises(SequenceError, match="exists already"):
        story.store.copy_prefix("a", "b", 2)
    story.store.free("b")
    story.store.copy_prefix("a", "b", 2)
    assert story.step(b=[7]) == {"b": [[1, 2, 7]]}


def test_states_go_back_to_the_last_checkpoint_before() -> None:
    story = Story(state=True)
    story.step(a=[1] * 10)
    story.store.checkpoint("a")
    story.step(a=[2] * 10)
    story.store.checkpoint("a")
    story.step(a=[3] * 5)
    assert resumable(story, 25) == [0, 10, 20, 25]
    story.store.remove("a", 20)
    assert story.store.checkpoints("a") == [10, 20]
    story.store.remove("a", 10)
    assert story.store.checkpoints("a") == [10]
    story.store.remove("a", 0)
    assert story.store.checkpoints("a") == []
    assert story.pool.num_held == 0

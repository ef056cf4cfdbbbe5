"""The sequences of a batch, all with the same number of tokens, in a pool that grows with them."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import CacheFullError, NotSupportedError
from ..pool.frame_pool import SINK_FRAMES
from ..pool.store import SequenceStore

GROWTH = 1.5
UNLIMITED = 1 << 40


def frames_allowed(num_frames: int, frame_bytes: int, max_bytes: int | None, least: int) -> int:
    """`num_frames`, or as many as `max_bytes` hold beside the sink.

    Raises:
        CacheFullError: these are fewer than `least`.
    """
    if max_bytes is None:
        return num_frames
    most = max_bytes // frame_bytes - SINK_FRAMES
    if most < least:
        raise CacheFullError(
            f"the cache needs {(least + SINK_FRAMES) * frame_bytes} bytes and may take "
            f"{max_bytes}; feed fewer or shorter sequences, or raise max_bytes"
        )
    return min(num_frames, most)


class BatchSequences:
    """Names the sequences of a batch and finds frames for their tokens.

    Args:
        store: theirs alone.
        max_bytes: most bytes that its pool may take; None for no limit.
        keeps_all: windows let go of nothing, so that every token can be taken back.

    Attributes:
        ids: of the sequences, in the order of the batch.
    """

    def __init__(
        self, store: SequenceStore, *, max_bytes: int | None = None, keeps_all: bool = False
    ) -> None:
        self.store = store
        self.max_bytes = max_bytes
        self.keeps_all = keeps_all
        self.ids: list[int] = []
        self._next_id = 0
        store.history = UNLIMITED if keeps_all else 0

    def keep_all(self) -> None:
        """From now on, let windows let go of nothing."""
        self.keeps_all, self.store.history = True, UNLIMITED

    def create(self, batch_size: int) -> None:
        """So many empty sequences."""
        self.ids = self._new_ids(batch_size)
        for seq_id in self.ids:
            self.store.create(seq_id)

    def free(self) -> None:
        """Forget all sequences."""
        self.store.free(*self.ids)
        self.ids = []

    def take(self, sources: Sequence[int]) -> None:
        """Let the batch consist of these rows of what it was; frames are shared."""
        old, self.ids = self.ids, self._new_ids(len(sources))
        for seq_id, source in zip(self.ids, sources, strict=True):
            self.store.fork(old[source], seq_id)
        self.store.free(*old)

    def make_room(self, batch_size: int, end: int) -> None:
        """Frames for the tokens before `end`, unless they are there.

        Raises:
            NotSupportedError: the batch has another size.
            CacheFullError: they would take more than `max_bytes`.
        """
        if batch_size != len(self.ids):
            raise NotSupportedError(
                f"the cache holds {len(self.ids)} sequences, and {batch_size} were fed; make a "
                "new cache for another batch"
            )
        begin = self.store.num_tokens(self.ids[0])
        if end > begin:
            self.append(end - begin)

    def append(self, count: int) -> None:
        """Frames for `count` more tokens of each sequence, which count from now on."""
        store = self.store
        try:
            store.reserve(self.ids, count)
        except CacheFullError:
            # Also for a copy of each sequence's last frame, where they are shared.
            self.grow(len(self.ids) * (store.need(count) + len(store.layout.classes)))
            store.reserve(self.ids, count)
        store.commit(self.ids)

    def grow(self, count: int) -> None:
        """More frames: at least `count` fresh ones."""
        pool = self.store.pool
        least = pool.num_frames + count
        wanted = max(least, int(GROWTH * pool.num_frames))
        pool.grow(frames_allowed(wanted, pool.frame_bytes, self.max_bytes, least))

    def can_go_back(self, num_tokens: int) -> bool:
        """Whether `num_tokens` can be the number of tokens, after removing those behind."""
        return all(self.store.can_resume(seq_id, num_tokens) for seq_id in self.ids)

    def go_back(self, num_tokens: int) -> None:
        """Forget the tokens from `num_tokens` on, and what windows need no longer."""
        for seq_id in self.ids:
            self.store.remove(seq_id, num_tokens)
        self.store.history = 0
        self.store.trim(self.ids)
        self.store.history = UNLIMITED if self.keeps_all else 0

    def _new_ids(self, count: int) -> list[int]:
        self._next_id += count
        return list(range(self._next_id - count, self._next_id))

"""A sequence store beside a plain model of it: Python lists of tokens and row bytes per sequence.

The bytes of a token's rows, and of the state behind it, are made of all tokens up to it, as those
of a model are: whatever begins alike has the same bytes, by whichever way it came to them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from cacheshrink_hybrid.errors import CacheFullError, NotSupportedError
from cacheshrink_hybrid.pool import arena
from cacheshrink_hybrid.pool.frame_ledger import Handles
from cacheshrink_hybrid.pool.frame_pool import FramePool
from cacheshrink_hybrid.pool.layout import Layout, compile_layout
from cacheshrink_hybrid.pool.lifetime import FIRST, RECENT, LayerRows
from cacheshrink_hybrid.pool.prefixes.lookup import REASONS, Lookup
from cacheshrink_hybrid.pool.prefixes.state_codes import StateCodes, state_codes
from cacheshrink_hybrid.pool.prefixes.tree import PrefixTree
from cacheshrink_hybrid.pool.state_map import StateRows
from cacheshrink_hybrid.pool.state_tensors import StateShape
from cacheshrink_hybrid.pool.store import SequenceStore
from tests.pool.twin import Offers, Twin, texts


def small_layout(
    *,
    state: bool = True,
    windows: tuple[int | None, ...] = (None, 12),
    recent: int | None = None,
    first: int | None = None,
) -> Layout:
    """Frames of 8 tokens with two layers per lifetime class, and a state of several frames.

    Args:
        recent, first: so many tokens have rows of these kinds, of 3 tokens per frame, in layer 0.
    """
    rows = [
        LayerRows(layer_idx=2 * number + i, row_bytes=16 + 3 * i, window=window)
        for number, window in enumerate(windows)
        for i in range(2)
    ]
    if recent:
        rows.append(LayerRows(layer_idx=0, row_bytes=80, window=recent, kind=RECENT))
    if first:
        rows.append(LayerRows(layer_idx=0, row_bytes=80, limit=first, kind=FIRST))
    states = [StateRows(layer_idx=9, name="recurrent", num_rows=11, row_bytes=70)] if state else []
    return compile_layout(rows, states, tokens_per_frame=8)


STATE_SHAPE = StateShape(9, "recurrent", 0, (2, 16, 12), torch.float32)
"""Of what `coded_layout` has for a state."""


def coded_layout() -> Layout:
    """Frames of 8 tokens, and a state of numbers, which can be kept in a code."""
    rows = [LayerRows(layer_idx=number, row_bytes=16) for number in range(2)]
    return compile_layout(rows, [STATE_SHAPE.rows()], tokens_per_frame=8)


def codes_of(layout: Layout) -> StateCodes:
    """One that keeps small whole numbers as they are."""
    found = state_codes(layout, [STATE_SHAPE], "float16")
    assert found is not None
    return found


class Shadowed:
    """A store, and the twins of its sequences; each operation is done to both, then compared.

    Args:
        watched: one operation of so many is compared with the frame tables before it, should it be
            refused.
    """

    def __init__(
        self,
        layout: Layout,
        num_frames: int,
        *,
        seed: int = 0,
        history: int = 3,
        watched: int = 1,
        **settings,
    ) -> None:
        self.layout = layout
        self.pool = FramePool(num_frames, layout.frame_bytes, poison=True)
        self.store = SequenceStore(layout, self.pool, history=history, **settings)
        self.policy = settings.get("policy", "lru")
        self.twins: dict[int, Twin] = {}
        self._views = {
            row_set: arena.row_view(self.pool, layout.classes[number], place)
            for row_set, (number, place) in layout.places.items()
        }
        self.offers = Offers()
        self.random = np.random.default_rng(seed)
        self.texts = texts(self.random)
        self.refusals = self.saved_tokens = self.attempts = 0
        self.watched = watched
        self.lost_any = False
        """Whether a state found no room to be kept in."""
        self.next_id = 0

    def state_after(self, digest: bytes) -> bytes:
        """Of the tokens with this digest; small whole numbers where it is kept in a code."""
        num_bytes = self.layout.state.rows[0].num_bytes
        if self.store.prefixes.codes is None:
            return hashlib.shake_128(digest).digest(num_bytes)
        drawn = np.frombuffer(hashlib.shake_128(digest).digest(num_bytes // 4), dtype=np.int8)
        return drawn.astype(np.float32).tobytes()

    def attempt(self, operation: Callable[[], None], change: Callable[[], None]) -> bool:
        """Do `operation`; if it is refused nothing may have changed, else do `change` to twins."""
        self.attempts += 1
        watches = self.attempts % self.watched == 0
        tables = self.tables() if watches else []
        evicted, held = self.store.prefixes.evicted, self.pool.num_held
        try:
            operation()
        except (CacheFullError, NotSupportedError):
            self.refusals += 1
            assert self.store.prefixes.evicted == evicted
            assert self.pool.num_held == held
            assert not watches or self.tables() == tables
            return False
        change()
        return True

    def tables(self) -> list[list]:
        """Every frame table; `check` compares the bytes behind them."""
        numbers = range(len(self.layout.classes))
        return [self.store.frame_table(self.store.seq_ids, n).tolist() for n in numbers]

    def create(self) -> int:
        seq_id, self.next_id = self.next_id, self.next_id + 1
        self.store.create(seq_id)
        self.twins[seq_id] = Twin(self.texts[self.random.integers(len(self.texts))])
        return seq_id

    def running(self) -> list[int]:
        return list(self.twins)

    def append(self, seq_ids: list[int], counts: list[int], *, strays: float = 0.03) -> bool:
        """One step of a batch with unequal lengths.

        Args:
            strays: share of its sequences that leave their text.
        """

        def change() -> None:
            for seq_id, count in zip(seq_ids, counts, strict=True):
                self._write(seq_id, count, strays)
            self.store.commit(seq_ids)

        return self.attempt(lambda: self.store.reserve(seq_ids, counts), change)

    def _write(self, seq_id: int, count: int, strays: float) -> None:
        twin, store = self.twins[seq_id], self.store
        begin = twin.num_tokens
        new = list(twin.text[begin : begin + count])
        if count and self.random.random() < strays:
            new = new[: int(self.random.integers(count))]
        new += self.random.integers(0, 3, count - len(new)).tolist()
        twin.extend(new)
        places = self._places_of(seq_id, begin, begin + count)
        for row_set, (number, place) in self.layout.places.items():
            at = places[number]
            if at is not None:
                width = self.layout.classes[number].row_bytes[place]
                rows = bytearray(twin.rows(row_set, width, begin, begin + len(at[0])))
                stored = torch.frombuffer(rows, dtype=torch.uint8).view(-1, width)
                self._views[row_set][at] = stored
        if self.layout.state.num_frames and count:
            read, write = (table.long() for table in store.state_tables([seq_id]))
            old = arena.read_state(self.pool, self.layout.state, read, 0)
            assert old.numpy().tobytes() == (twin.state or bytes(old.numel()))
            twin.state = self.state_after(twin.digests[-1])
            values = torch.frombuffer(bytearray(twin.state), dtype=torch.uint8)
            arena.write_state(self.pool, self.layout.state, write, 0, values[None])

    def _places_of(self, seq_id: int, begin: int, end: int) -> list[tuple[Tensor, Tensor] | None]:
        """Frames of the tokens [begin, end), and where in them they lie, per lifetime class; None
        where these have no rows."""
        found: list[tuple[Tensor, Tensor] | None] = []
        for number, lifetime in enumerate(self.layout.classes):
            last = lifetime.num_rows(end)
            if begin >= last:
                found.append(None)
                continue
            tokens = torch.arange(begin, last)
            entries = self.store.frame_table([seq_id], number)[0].long().clamp_min(0)
            T = lifetime.tokens_per_frame
            found.append((entries[tokens // T], tokens % T))
        return found

    def copy_prefix(self, source: int, num_tokens: int) -> bool:
        target, self.next_id = self.next_id, self.next_id + 1

        def change() -> None:
            self.twins[target] = self.twins[source].copy()
            self._cut(self.twins[target], num_tokens)

        return self.attempt(lambda: self.store.copy_prefix(source, target, num_tokens), change)

    def _cut(self, twin: Twin, num_tokens: int) -> None:
        if num_tokens != twin.num_tokens and self.layout.state.num_frames:
            twin.state = twin.checkpoints[num_tokens] if num_tokens else b""
        twin.checkpoints = {p: s for p, s in twin.checkpoints.items() if p <= num_tokens}
        del twin.tokens[num_tokens:], twin.digests[num_tokens:]

    def remove(self, seq_id: int, begin: int) -> bool:
        twin = self.twins[seq_id]
        return self.attempt(
            lambda: self.store.remove(seq_id, begin), lambda: self._cut(twin, begin)
        )

    def checkpoint(self, seq_id: int) -> None:
        twin = self.twins[seq_id]
        self.store.checkpoint(seq_id)
        if twin.state:
            twin.checkpoints[twin.num_tokens] = twin.state

    def offer(self, seq_id: int, priority: float | None = None) -> None:
        """By a priority that is drawn if none is given."""
        twin = self.twins[seq_id]
        if twin.tokens:
            priority = float(self.random.integers(4)) if priority is None else priority
            kind = "even" if seq_id % 2 == 0 else "odd"
            self.store.offer_prefix(seq_id, twin.tokens, priority=priority, kind=kind)
            self.note_offer(seq_id)

    def note_offer(self, seq_id: int, *, checkpoint: bool = True) -> None:
        """A sequence was offered as it stands."""
        twin = self.twins[seq_id]
        kept = self.store.prefixes.find([*twin.tokens, -1]).num_tokens
        self.lost_any = self.lost_any or (checkpoint and kept < twin.num_tokens)
        if checkpoint or self.layout.classes:
            self.offers.add(twin.digests, checkpoint=checkpoint)

    def resume(self, seq_id: int, length: int) -> Lookup:
        """Let an empty sequence begin with what is kept of its text."""
        asked = self.twins[seq_id].text[:length]
        held = self.pool.num_held
        found = self.store.resume_prefix(seq_id, asked)
        self.note_found(seq_id, asked, found)
        if self.store.prefixes.codes is None and self.store.prefixes.below is None:
            assert self.pool.num_held == held
        return found

    def note_found(self, seq_id: int, asked: Sequence[int], found: Lookup) -> None:
        """An empty sequence began with what was found of the tokens that it is to take."""
        assert found.num_tokens <= found.num_matched < len(asked)
        assert found.reason in REASONS
        self.check_found(asked, found)
        self.saved_tokens += found.num_tokens
        twin = self.twins[seq_id]
        twin.extend(asked[: found.num_tokens])
        if found.num_tokens and self.layout.state.num_frames:
            twin.state = self.state_after(twin.digests[-1])

    def check_found(self, asked: Sequence[int], found: Lookup) -> None:
        """Nothing is found that was not offered; as long as nothing was evicted, all is."""
        whole = Twin()
        whole.extend(asked[:-1])
        matched = self.offers.matched(whole.digests)
        assert found.num_matched <= matched
        if self.store.prefixes.evicted or self.lost_any:
            return
        assert found.num_matched == matched
        windows = [lifetime.window for lifetime in self.layout.classes]
        anywhere = not self.layout.state.num_frames and not any(windows)
        due = matched if anywhere else self.offers.last_end(whole.digests)
        assert found.num_tokens >= due if any(windows) else found.num_tokens == due

    def free(self, seq_id: int) -> None:
        self.store.free(seq_id)
        del self.twins[seq_id]

    def check(self) -> None:
        """Integrity, and every stored byte equal to the twin's."""
        self.store.check_integrity()
        assert set(self.store.seq_ids) == set(self.twins)
        for seq_id, twin in self.twins.items():
            assert self.store.num_tokens(seq_id) == twin.num_tokens
            frames = [
                self.store.frame_table([seq_id], number)[0].long()
                for number in range(len(self.layout.classes))
            ]
            for row_set, (number, place) in self.layout.places.items():
                begin = self.store.first_position(seq_id, number)
                lifetime = self.layout.classes[number]
                end = lifetime.num_rows(twin.num_tokens)
                assert begin <= lifetime.first_needed(twin.num_tokens + 1)
                view = arena.row_view(self.pool, lifetime, place)
                rows = arena.read_rows(view, frames[number], begin, end)
                width = lifetime.row_bytes[place]
                assert rows.numpy().tobytes() == twin.rows(row_set, width, begin, end)
            if twin.state:
                read, _ = self.store.state_tables([seq_id])
                state = arena.read_state(self.pool, self.layout.state, read.long(), 0)
                assert state.numpy().tobytes() == twin.state
            if self.layout.state.num_frames:
                assert self.store.checkpoints(seq_id) == sorted(twin.checkpoints)

    def check_prefixes(self, tree: PrefixTree | None = None) -> None:
        """Every byte that a tree of prefixes holds, by default the store's, is that of its tokens;
        it counts what it has, and lets go of all that can."""
        tree = tree or self.store.prefixes
        pool, nodes = tree.frames.pool, list(tree)
        assert tree.num_tokens == sum(len(node.tokens) for node in nodes)
        assert tree.num_checkpoints == sum(node.state is not None for node in nodes)
        ends = [node for node in nodes if node.state is not None or not node.children]
        assert set(tree.queue._entry) == set(ends)
        for node in nodes:
            twin = Twin()
            for step in node.path():
                twin.extend(step.tokens.tolist())
            for row_set, (number, place) in self.layout.places.items():
                lifetime, rows = self.layout.classes[number], node.rows[number]
                T, end = lifetime.tokens_per_frame, lifetime.num_rows(node.end)
                if not len(rows.frames):
                    continue
                view = arena.row_view(pool, lifetime, place)
                begin = rows.first // T * T
                found = arena.read_rows(
                    view, pool.index(rows.frames), rows.first - begin, end - begin
                )
                width = lifetime.row_bytes[place]
                assert found.numpy().tobytes() == twin.rows(row_set, width, rows.first, end)
            if node.state is not None:
                other, state = self.decoded(pool, node.state)
                frames = other.index(state)[None]
                found = arena.read_state(other, self.layout.state, frames, 0)
                assert found.numpy().tobytes() == self.state_after(twin.digests[-1])

    def decoded(self, pool: FramePool, state: Handles) -> tuple[FramePool, Handles]:
        """A kept state as a live one, and the pool that it is in."""
        codes = self.store.prefixes.codes
        if codes is None:
            return pool, state
        other = FramePool(len(state) + self.layout.state.num_frames, pool.frame_bytes)
        copy, live = other.allocate(len(state)), other.allocate(self.layout.state.num_frames)
        other.frames[other.index(copy)] = pool.frames[pool.index(state)]
        codes.decode(other, copy, live)
        return other, live

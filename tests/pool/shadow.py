"""A sequence store beside a plain model of it: Python lists of tokens and row bytes per sequence.

The bytes of a token's rows, and of the state behind it, are made of all tokens up to it, as those
of a model are: whatever begins alike has the same bytes, by whichever way it came to them.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch

from cacheshrink_hybrid.errors import CacheFullError, NotSupportedError
from cacheshrink_hybrid.pool import arena
from cacheshrink_hybrid.pool.frame_ledger import Handles
from cacheshrink_hybrid.pool.frame_pool import FramePool
from cacheshrink_hybrid.pool.layout import Layout, compile_layout
from cacheshrink_hybrid.pool.lifetime import FIRST, RECENT, LayerRows, RowSet
from cacheshrink_hybrid.pool.prefixes.lookup import REASONS, Lookup
from cacheshrink_hybrid.pool.prefixes.state_codes import StateCodes, state_codes
from cacheshrink_hybrid.pool.prefixes.tree import PrefixTree
from cacheshrink_hybrid.pool.state_map import StateRows
from cacheshrink_hybrid.pool.state_tensors import StateShape
from cacheshrink_hybrid.pool.store import SequenceStore


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


@lru_cache(maxsize=1 << 16)
def row_of(digest: bytes, row_set: RowSet, row_bytes: int) -> bytes:
    """The row of the last of the tokens with this digest."""
    return hashlib.shake_128(digest + f"{row_set}".encode()).digest(row_bytes)


@dataclass
class Twin:
    """What a sequence should hold: its tokens, a digest of those up to each of them, from which
    their rows are made, and its states.

    Attributes:
        text: that its tokens mostly follow, so that sequences begin alike.
    """

    text: tuple[int, ...] = ()
    tokens: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    state: bytes = b""
    checkpoints: dict[int, bytes] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            before = self.digests[-1] if self.digests else b""
            self.tokens.append(token)
            self.digests.append(hashlib.sha256(before + bytes([token])).digest())

    def rows(self, row_set: RowSet, row_bytes: int, begin: int, end: int) -> bytes:
        return b"".join(row_of(x, row_set, row_bytes) for x in self.digests[begin:end])


@dataclass(frozen=True)
class Offer:
    """A sequence as it was when it was offered as a prefix.

    Attributes:
        first: see `SequenceStore.first_position`, per lifetime class.
    """

    tokens: tuple[int, ...]
    first: tuple[int, ...]

    def matched(self, tokens: Sequence[int]) -> int:
        pairs = enumerate(zip(self.tokens, tokens, strict=False))
        alike = min(len(self.tokens), len(tokens))
        return next((i for i, (mine, theirs) in pairs if mine != theirs), alike)


def texts(random: np.random.Generator) -> list[tuple[int, ...]]:
    """Texts that begin with the same tokens, more or fewer of them."""
    common = random.integers(0, 3, 400)
    found = []
    for shared in (0, 5, 16, 37, 37, 60, 110):
        own = random.integers(0, 3, 400 - shared)
        found.append(tuple(np.concatenate([common[:shared], own]).tolist()))
    return found


class Shadowed:
    """A store, and the twins of its sequences; each operation is done to both, then compared."""

    def __init__(
        self, layout: Layout, num_frames: int, *, seed: int = 0, history: int = 3, **settings
    ) -> None:
        self.layout = layout
        self.pool = FramePool(num_frames, layout.frame_bytes, poison=True)
        self.store = SequenceStore(layout, self.pool, history=history, **settings)
        self.policy = settings.get("policy", "lru")
        self.twins: dict[int, Twin] = {}
        self.offers: list[Offer] = []
        self.random = np.random.default_rng(seed)
        self.texts = texts(self.random)
        self.refusals = self.saved_tokens = 0
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
        tables = self.tables()
        evicted = self.store.prefixes.evicted
        try:
            operation()
        except (CacheFullError, NotSupportedError):
            self.refusals += 1
            assert self.store.prefixes.evicted == evicted
            assert self.tables() == tables
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

    def append(self, seq_ids: list[int], counts: list[int]) -> bool:
        """One step of a batch with unequal lengths."""

        def change() -> None:
            for seq_id, count in zip(seq_ids, counts, strict=True):
                self._write(seq_id, count)
            self.store.commit(seq_ids)

        return self.attempt(lambda: self.store.reserve(seq_ids, counts), change)

    def _write(self, seq_id: int, count: int) -> None:
        twin, store = self.twins[seq_id], self.store
        begin = twin.num_tokens
        new = list(twin.text[begin : begin + count])
        if count and self.random.random() < 0.03:
            new = new[: int(self.random.integers(count))]
        new += self.random.integers(0, 3, count - len(new)).tolist()
        twin.extend(new)
        for row_set, (number, place) in self.layout.places.items():
            lifetime = self.layout.classes[number]
            view = arena.row_view(self.pool, lifetime, place)
            end, width = lifetime.num_rows(begin + count), lifetime.row_bytes[place]
            frames = store.frame_table([seq_id], number)[0].long().clamp_min(0)
            if begin < end:
                rows = bytearray(twin.rows(row_set, width, begin, end))
                stored = torch.frombuffer(rows, dtype=torch.uint8).view(-1, width)
                arena.write_rows(view, frames, begin, stored)
        if self.layout.state.num_frames and count:
            read, write = (table.long() for table in store.state_tables([seq_id]))
            old = arena.read_state(self.pool, self.layout.state, read, 0)
            assert old.numpy().tobytes() == (twin.state or bytes(old.numel()))
            twin.state = self.state_after(twin.digests[-1])
            values = torch.frombuffer(bytearray(twin.state), dtype=torch.uint8)
            arena.write_state(self.pool, self.layout.state, write, 0, values[None])

    def copy_prefix(self, source: int, num_tokens: int) -> bool:
        target, self.next_id = self.next_id, self.next_id + 1

        def change() -> None:
            self.twins[target] = copy.deepcopy(self.twins[source])
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
            kept = self.store.prefixes.find([*twin.tokens, -1]).num_tokens
            self.lost_any = self.lost_any or kept < twin.num_tokens
            numbers = range(len(self.layout.classes))
            first = tuple(self.store.first_position(seq_id, number) for number in numbers)
            self.offers.append(Offer(tuple(twin.tokens), first))

    def resume(self, seq_id: int, length: int) -> Lookup:
        """Let an empty sequence begin with what is kept of its text."""
        twin = self.twins[seq_id]
        asked = twin.text[:length]
        held = self.pool.num_held
        found = self.store.resume_prefix(seq_id, asked)
        assert found.num_tokens <= found.num_matched < len(asked)
        assert found.reason in REASONS
        self.check_found(asked, found)
        self.saved_tokens += found.num_tokens
        twin.extend(asked[: found.num_tokens])
        if found.num_tokens and self.layout.state.num_frames:
            twin.state = self.state_after(twin.digests[-1])
        if self.store.prefixes.codes is None and self.store.prefixes.below is None:
            assert self.pool.num_held == held
        return found

    def check_found(self, asked: Sequence[int], found: Lookup) -> None:
        """Nothing is found that was not offered; as long as nothing was evicted, all is."""
        limit = len(asked) - 1
        matched = [min(offer.matched(asked), limit) for offer in self.offers]
        assert found.num_matched <= max(matched, default=0)
        if self.store.prefixes.evicted or self.lost_any:
            return
        assert found.num_matched == max(matched, default=0)
        windows = [lifetime.window for lifetime in self.layout.classes]
        anywhere = not self.layout.state.num_frames and not any(windows)
        ends = [
            count
            for offer, count in zip(self.offers, matched, strict=True)
            if anywhere or count == len(offer.tokens)
        ]
        due = max(ends, default=0)
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
        """Every byte that a tree of prefixes holds, by default the store's, is that of its
        tokens."""
        tree = tree or self.store.prefixes
        pool = tree.frames.pool
        for node in tree:
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

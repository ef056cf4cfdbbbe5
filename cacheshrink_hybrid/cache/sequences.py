"""Sequences that share one pool: steps, forks, removal, parking and eviction.

A step takes new tokens in two calls, so that it can be refused before anything is computed:

    store.reserve(ids, counts)     frames for the new tokens; all sequences or none
    ...                            the model writes rows and states through the tables
    store.commit(ids)              the tokens now count

Sequences share frames. A fork copies nothing; a shared, partly filled last frame is copied before
its first new row is written, and a shared state is read from the old frames and written to fresh
ones. A call that raises has changed nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import CacheFullError, FrameError, NotSupportedError, SequenceError
from . import arena
from .eviction import EvictionQueue
from .frame_ledger import FRAME_MASK, FrameStatistics, Handles, frame_ids
from .frame_pool import FramePool
from .layout import Layout
from .sequence import CachedSequence, FrameTable
from .step import Step, plan_step

Shift = Callable[[int, Tensor, int], Tensor]
"""(layer_idx, rows (k, row_bytes), distance) -> rows of keys turned by `distance` positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStatistics:
    """A pool in numbers.

    Attributes:
        frames: of the ledger.
        useful_bytes: rows of visible tokens and states, those in shared frames once.
        held_bytes: of held frames.
        internal_fragmentation: 1 - useful / held.
        running, parked: sequences.
        evicted: sequences evicted so far.
        copied_bytes: bytes of frames copied before a write, so far.
    """

    frames: FrameStatistics
    useful_bytes: int
    held_bytes: int
    internal_fragmentation: float
    running: int
    parked: int
    evicted: int
    copied_bytes: int


class SequenceStore:
    """Sequences of one model in one pool, of which this is the only user.

    Args:
        layout: where the bytes lie.
        pool: frames of `layout.frame_bytes` bytes, all free.
        history: tokens kept beyond every window, so that so many can be removed again.
        policy: which parked sequence is evicted first; see `eviction`.
        rotated_layers: layers whose rows hold keys that were rotated by their position; None for
            all. Latents are rotated when they are read, so they belong to no position.
        shift: turns rows of such layers, for `remove` in the middle.
    """

    def __init__(
        self,
        layout: Layout,
        pool: FramePool,
        *,
        history: int = 0,
        policy: str = "lru",
        rotated_layers: Collection[int] | None = None,
        shift: Shift | None = None,
    ) -> None:
        if pool.frame_bytes != layout.frame_bytes or pool.num_held:
            raise FrameError(
                f"a store needs a pool of its own with frames of {layout.frame_bytes} bytes; got "
                f"frames of {pool.frame_bytes} bytes, {pool.num_held} of them held"
            )
        self.layout = layout
        self.pool = pool
        self.history = history
        self.evicted = 0
        self.copied_bytes = 0
        layers = set(layout.class_of_layer)
        self._rotated_layers = layers & set(layers if rotated_layers is None else rotated_layers)
        self._shift = shift
        self._sequences: dict[Hashable, CachedSequence] = {}
        self._runs: dict[Hashable, Handles] = {}
        self._queue = EvictionQueue(policy)
        self._pins = np.zeros(pool.num_frames + 1, dtype=np.int32)
        self._num_pinned = 0
        self._clock = 0

    # What is there

    def __contains__(self, seq_id: Hashable) -> bool:
        return seq_id in self._sequences

    @property
    def seq_ids(self) -> list[Hashable]:
        return list(self._sequences)

    @property
    def num_evictable(self) -> int:
        """Frames that evicting every parked sequence would make free."""
        return self.pool.num_held - self._num_pinned

    def need(self, num_tokens: int) -> int:
        """Frames that a new sequence needs to take `num_tokens` tokens at once."""
        kv = sum(-(-num_tokens // lifetime.tokens_per_frame) for lifetime in self.layout.classes)
        return kv + self.layout.state.num_frames

    def can_admit(self, num_tokens: int) -> bool:
        """Whether a new sequence could take `num_tokens` tokens now: the whole admission rule."""
        return self.pool.num_free + self.num_evictable >= self.need(num_tokens)

    def num_tokens(self, seq_id: Hashable) -> int:
        return self._known(seq_id).num_tokens

    def num_held(self, seq_id: Hashable) -> int:
        """References to frames that a sequence has."""
        return self._known(seq_id).num_held

    def first_position(self, seq_id: Hashable, class_number: int) -> int:
        """Position of the first token of a lifetime class that is still stored."""
        return self._known(seq_id).first[class_number]

    def checkpoints(self, seq_id: Hashable) -> list[int]:
        """Positions, in tokens, at which a state of the sequence is kept."""
        return sorted(self._known(seq_id).checkpoints)

    # Life and death

    def create(self, seq_id: Hashable, *, priority: float = 0.0) -> None:
        """An empty, running sequence; it takes no frames yet."""
        self._refuse_taken(seq_id)
        self._sequences[seq_id] = self._new(seq_id, priority)

    def free(self, *seq_ids: Hashable) -> None:
        """Give back everything that these sequences hold and forget them; running or parked."""
        for sequence in self._distinct(seq_ids):
            self._queue.discard(sequence.seq_id)
            self._drop(sequence)

    def park(self, seq_id: Hashable, *, saved_flops: float = 0.0) -> None:
        """Keep a finished sequence for reuse, as long as nobody needs its frames.

        Args:
            saved_flops: operations that a hit on it would save, for `flops_per_byte`.
        """
        sequence = self._running(seq_id)
        for table, lifetime in zip(sequence.tables, self.layout.classes, strict=True):
            self._release(table.cut(-(-sequence.num_tokens // lifetime.tokens_per_frame)))
        sequence.pending = 0
        if sequence.next_state is not None:
            self._release(sequence.next_state)
            sequence.next_state = None
        self._touch(sequence)
        sequence.saved_flops = saved_flops
        for handles in sequence.holdings():
            self._unpin(handles)
        sequence.parked = True
        self._queue.push(sequence, sequence.num_held * self.layout.frame_bytes)

    def unpark(self, seq_id: Hashable) -> None:
        """Let a parked sequence run on."""
        sequence = self._known(seq_id)
        if not sequence.parked:
            raise SequenceError(f"sequence {seq_id!r} is running already; only parked ones wake")
        self._queue.discard(seq_id)
        sequence.parked = False
        for handles in sequence.holdings():
            self._pin(handles)
        self._touch(sequence)

    def reset(self, seq_id: Hashable) -> None:
        """Empty a running sequence, checkpoints included."""
        self.remove(seq_id, 0)

    # Steps

    def reserve(self, seq_ids: Sequence[Hashable], counts: int | Sequence[int]) -> None:
        """Make room for `counts` new tokens of each sequence, for all of them or for none.

        Tokens that the first new one does not see are dropped from the windows. Parked sequences
        are evicted as needed.

        Raises:
            CacheFullError: too few frames, even if all parked sequences were evicted.
            SequenceError: an id is unknown, parked, named twice or has a step pending.
        """
        sequences = [self._ready(sequence) for sequence in self._distinct(seq_ids)]
        counts = [counts] * len(sequences) if isinstance(counts, int) else list(counts)
        if len(counts) != len(sequences) or min(counts, default=0) < 0:
            raise SequenceError(
                f"counts={counts} must be one number >= 0 for each of {len(sequences)} sequences"
            )
        while True:
            step = plan_step(self.layout, self.pool, self._pins, sequences, counts, self.history)
            if step.num_needed <= self.pool.num_free + step.num_freed:
                break
            most = self.pool.num_free + self.num_evictable + step.num_unpinned
            if step.num_needed > most:
                raise self._full(step.num_needed, most)
            self._evict()
        self._perform(step)
        for sequence, count in zip(sequences, counts, strict=True):
            sequence.pending = count
            self._touch(sequence)

    def commit(
        self, seq_ids: Sequence[Hashable], counts: int | Sequence[int] | None = None
    ) -> None:
        """Count reserved tokens as stored; None for all of them.

        Raises:
            NotSupportedError: fewer tokens than reserved, though a recurrent state has taken all.
        """
        sequences = self._distinct(seq_ids)
        if counts is None:
            counts = [sequence.pending for sequence in sequences]
        counts = [counts] * len(sequences) if isinstance(counts, int) else list(counts)
        for sequence, count in zip(sequences, counts, strict=True):
            if not 0 <= count <= sequence.pending:
                raise SequenceError(
                    f"{count} tokens of sequence {sequence.seq_id!r} cannot be committed; "
                    f"{sequence.pending} are reserved"
                )
            if self.layout.state.num_frames and count not in (0, sequence.pending):
                raise NotSupportedError(
                    f"{count} of {sequence.pending} tokens cannot be committed: the recurrent "
                    "state has taken all; reserve only what will be committed"
                )
        for sequence, count in zip(sequences, counts, strict=True):
            if sequence.next_state is not None and count:
                assert sequence.state is not None
                self._release(sequence.state)
                sequence.state, sequence.next_state = sequence.next_state, None
            sequence.num_tokens += count
            sequence.pending = 0

    def trim(self, seq_ids: Sequence[Hashable]) -> None:
        """Drop the tokens that have left the windows, beyond `history`, now instead of with the
        next step."""
        sequences = [self._ready(sequence) for sequence in self._distinct(seq_ids)]
        step = plan_step(
            self.layout, self.pool, self._pins, sequences, [1] * len(sequences), self.history
        )
        self._slide(step)

    # Sharing

    def fork(self, source: Hashable, target: Hashable, *, priority: float = 0.0) -> None:
        """A running twin of `source`, that shares all its frames."""
        self.copy_prefix(source, target, self._known(source).num_tokens, priority=priority)

    def copy_prefix(
        self, source: Hashable, target: Hashable, num_tokens: int, *, priority: float = 0.0
    ) -> None:
        """A new running sequence of the first `num_tokens` tokens of `source`; copies nothing.

        Raises:
            SequenceError: unknown source, taken target, or more tokens than there are.
            NotSupportedError: a window has dropped tokens that the next one would see, or no
                recurrent state is kept at `num_tokens`.
        """
        origin = self._ready(self._known(source), parked=True)
        self._refuse_taken(target)
        self._check_resume(origin, num_tokens)
        twin = self._new(target, priority)
        twin.num_tokens = num_tokens
        twin.first = [min(first, num_tokens) for first in origin.first]
        twin.tables = [
            table.first_frames(-(-num_tokens // lifetime.tokens_per_frame))
            for table, lifetime in zip(origin.tables, self.layout.classes, strict=True)
        ]
        if num_tokens and self.layout.state.num_frames:
            at_end = num_tokens == origin.num_tokens
            twin.state = origin.state if at_end else origin.checkpoints[num_tokens]
            twin.checkpoints = {
                position: handles
                for position, handles in origin.checkpoints.items()
                if position <= num_tokens
            }
        for handles in twin.holdings():
            self.pool.retain(handles)
            self._pin(handles)
        self._sequences[target] = twin
        origin.uses += 1
        self._touch(origin)

    def reorder(self, seq_ids: Sequence[Hashable], sources: Sequence[int]) -> None:
        """Let sequence i go on from what sequence `sources[i]` of the list holds, for all i at
        once; as beams do."""
        sequences = [self._ready(sequence) for sequence in self._distinct(seq_ids)]
        before = [
            ([table.first_frames(len(table)) for table in sequence.tables], list(sequence.first),
             sequence.num_tokens, sequence.state, dict(sequence.checkpoints))
            for sequence in sequences
        ]  # fmt: skip
        taken = [i for i, source in enumerate(sources) if source != i]
        for i in taken:
            tables, _, _, state, checkpoints = before[sources[i]]
            for handles in (*(t.held for t in tables), state, *checkpoints.values()):
                if handles is not None:
                    self.pool.retain(handles)
                    self._pin(handles)
        for i in taken:
            sequence = sequences[i]
            for handles in list(sequence.holdings()):
                self._release(handles)
            tables, first, num_tokens, state, checkpoints = before[sources[i]]
            sequence.tables = [table.first_frames(len(table)) for table in tables]
            sequence.first, sequence.num_tokens = list(first), num_tokens
            sequence.state, sequence.next_state = state, None
            sequence.checkpoints = dict(checkpoints)

    # Frames beside sequences

    def hold_run(self, name: Hashable, count: int) -> Handles:
        """Take `count` neighbouring frames under a name, for content that no sequence describes.

        Raises:
            CacheFullError: no such run is free.
            SequenceError: the name is taken.
        """
        if name in self._runs:
            raise SequenceError(f"frames are held as {name!r} already; drop them first")
        handles = self.pool.allocate_run(count, "state")
        self._pin(handles)
        self._runs[name] = handles
        return handles

    def drop_run(self, name: Hashable) -> None:
        """Give those frames back."""
        if name not in self._runs:
            raise SequenceError(f"no frames are held as {name!r}")
        self._release(self._runs.pop(name))

    # Going back

    def checkpoint(self, seq_id: Hashable) -> None:
        """Keep the recurrent state after the tokens so far, to come back to. Costs no copy now;
        the next step writes the state to fresh frames. Nothing to do without a state."""
        sequence = self._ready(self._running(seq_id))
        position = sequence.num_tokens
        if sequence.state is None or position in sequence.checkpoints:
            return
        self.pool.retain(sequence.state)
        self._pin(sequence.state)
        sequence.checkpoints[position] = sequence.state

    def drop_checkpoint(self, seq_id: Hashable, position: int) -> None:
        """Forget a kept state."""
        sequence = self._running(seq_id)
        if position not in sequence.checkpoints:
            raise SequenceError(
                f"sequence {seq_id!r} keeps no state at {position}; it does at "
                f"{sorted(sequence.checkpoints)}"
            )
        self._release(sequence.checkpoints.pop(position))

    def can_resume(self, seq_id: Hashable, position: int) -> bool:
        """Whether the token at `position` could come next, after removing those from there on."""
        try:
            self._check_resume(self._known(seq_id), position)
        except (NotSupportedError, SequenceError):
            if seq_id not in self._sequences:
                raise
            return False
        return True

    def resume_point(self, seq_id: Hashable, position: int) -> int:
        """The furthest position up to `position` at which the sequence, or a copy of its prefix,
        can go on; 0 if it has to start again."""
        sequence = self._known(seq_id)
        places = [min(position, sequence.num_tokens)]
        if self.layout.state.num_frames:
            kept = (*sequence.checkpoints, sequence.num_tokens)
            places = sorted((p for p in kept if p <= position), reverse=True)
        return next((place for place in places if self.can_resume(seq_id, place)), 0)

    def remove(self, seq_id: Hashable, begin: int, end: int | None = None) -> None:
        """Forget the tokens [begin, end); later ones move down to `begin`.

        Removing a tail goes back to an earlier state of the sequence. Removing from the middle
        renumbers keys; their rows are copied to where they now belong.

        Args:
            end: None for all from `begin` on.

        Raises:
            NotSupportedError: the sequence could not go on exactly: tokens that the next one sees
                have left a window, no recurrent state is kept at `begin`, a recurrent state has
                taken the tokens in the middle, or keys were rotated and there is no `shift`.
            CacheFullError: rows in the middle are shared and there are no frames to copy them.
        """
        sequence = self._ready(self._running(seq_id))
        num_tokens = sequence.num_tokens
        end = num_tokens if end is None else end
        if not 0 <= begin <= end <= num_tokens:
            raise SequenceError(
                f"tokens [{begin}, {end}) of sequence {seq_id!r} cannot be removed; it has "
                f"{num_tokens}"
            )
        if begin == end:
            return
        if end == num_tokens:
            self._check_resume(sequence, begin)
            self._cut(sequence, begin)
        else:
            self._cut_out(sequence, begin, end)
        self._touch(sequence)

    # Tables and bytes

    def frame_table(self, seq_ids: Sequence[Hashable], class_number: int = 0) -> Tensor:
        """Frame numbers (B, most frames), int32 on the pool's device, -1 where unused or gone."""
        tables = [self._known(seq_id).tables[class_number] for seq_id in seq_ids]
        longest = max((len(table) for table in tables), default=0)
        numbers = np.full((len(tables), longest), -1, dtype=np.int32)
        for row, table in zip(numbers, tables, strict=True):
            row[: len(table)] = frame_ids(table.entries)
        return torch.from_numpy(numbers).to(self.pool.device)

    def context_lens(self, seq_ids: Sequence[Hashable]) -> Tensor:
        """Committed tokens (B,), int32 on the pool's device."""
        lengths = [self._known(seq_id).num_tokens for seq_id in seq_ids]
        return torch.tensor(lengths, dtype=torch.int32, device=self.pool.device)

    def state_tables(self, seq_ids: Sequence[Hashable]) -> tuple[Tensor, Tensor]:
        """Frames to read and to write the pending step's states, (B, state frames) each."""
        read, write = [], []
        for seq_id in seq_ids:
            sequence = self._known(seq_id)
            if sequence.state is None:
                raise SequenceError(f"sequence {seq_id!r} has no state yet; reserve a step first")
            read.append(frame_ids(sequence.state))
            write.append(
                read[-1] if sequence.next_state is None else frame_ids(sequence.next_state)
            )
        device = self.pool.device
        return torch.from_numpy(np.stack(read)).to(device), torch.from_numpy(np.stack(write)).to(
            device
        )

    def digest(self, seq_id: Hashable) -> str:
        """SHA-256 of every stored row and state byte of a sequence, wherever they lie."""
        sequence = self._known(seq_id)
        text = hashlib.sha256(f"{sequence.num_tokens}".encode())
        for number, lifetime in enumerate(self.layout.classes):
            frames = self._frames(sequence.tables[number])
            for place in range(len(lifetime.layer_ids)):
                view = arena.row_view(self.pool, lifetime, place)
                begin = sequence.first[number]
                rows = arena.read_rows(view, frames, begin, sequence.num_tokens)
                text.update(f"{begin}".encode() + rows.cpu().numpy().tobytes())
        if sequence.state is not None:
            frames = self.pool.index(sequence.state)[None]
            for number in range(len(self.layout.state.rows)):
                state = arena.read_state(self.pool, self.layout.state, frames, number)
                text.update(state.cpu().numpy().tobytes())
        return text.hexdigest()

    # Checking

    def statistics(self) -> StoreStatistics:
        useful = self._useful_bytes()
        held = self.pool.num_held * self.layout.frame_bytes
        parked = len(self._queue)
        return StoreStatistics(
            frames=self.pool.statistics(),
            useful_bytes=useful,
            held_bytes=held,
            internal_fragmentation=1 - useful / held if held else 0.0,
            running=len(self._sequences) - parked,
            parked=parked,
            evicted=self.evicted,
            copied_bytes=self.copied_bytes,
        )

    def check_integrity(self) -> None:
        """Raise `FrameError` unless every reference and pin is that of exactly one sequence."""
        self.pool.check_integrity()
        references = np.zeros(self.pool.num_frames + 1, dtype=np.int64)
        pins = references.copy()
        for handles in self._runs.values():
            self.pool.references(handles)
            references[handles & FRAME_MASK] += 1
            pins[handles & FRAME_MASK] += 1
        for sequence in self._sequences.values():
            for handles in sequence.holdings():
                self.pool.references(handles)
                np.add.at(references, handles & FRAME_MASK, 1)
                if not sequence.parked:
                    np.add.at(pins, handles & FRAME_MASK, 1)
            for table, lifetime, first in zip(
                sequence.tables, self.layout.classes, sequence.first, strict=True
            ):
                T = lifetime.tokens_per_frame
                if len(table) * T < sequence.num_tokens or table.num_gone * T > first:
                    raise FrameError(f"sequence {sequence.seq_id!r} lacks frames for its tokens")
        if (references != self.pool.reference_counts()).any():
            raise FrameError("references of the pool are not those of the sequences")
        if (pins != self._pins).any() or self._num_pinned != (pins > 0).sum():
            raise FrameError("pins are not those of the running sequences")

    # Inside

    def _new(self, seq_id: Hashable, priority: float) -> CachedSequence:
        self._clock += 1
        return CachedSequence(
            seq_id=seq_id,
            tables=[FrameTable() for _ in self.layout.classes],
            first=[0] * len(self.layout.classes),
            priority=priority,
            created=self._clock,
            last_use=self._clock,
        )

    def _known(self, seq_id: Hashable) -> CachedSequence:
        sequence = self._sequences.get(seq_id)
        if sequence is None:
            raise SequenceError(
                f"sequence {seq_id!r} is unknown; it was never created, was freed, or was evicted"
            )
        return sequence

    def _running(self, seq_id: Hashable) -> CachedSequence:
        sequence = self._known(seq_id)
        if sequence.parked:
            raise SequenceError(f"sequence {seq_id!r} is parked; unpark it first")
        return sequence

    def _ready(self, sequence: CachedSequence, *, parked: bool = False) -> CachedSequence:
        if sequence.pending:
            raise SequenceError(
                f"sequence {sequence.seq_id!r} has {sequence.pending} reserved tokens; commit "
                "them (or commit 0 of them) first"
            )
        return sequence if parked else self._running(sequence.seq_id)

    def _distinct(self, seq_ids: Sequence[Hashable]) -> list[CachedSequence]:
        if len(set(seq_ids)) != len(seq_ids):
            raise SequenceError(f"sequences {list(seq_ids)} are to be named once each")
        return [self._known(seq_id) for seq_id in seq_ids]

    def _refuse_taken(self, seq_id: Hashable) -> None:
        if seq_id in self._sequences:
            raise SequenceError(f"sequence {seq_id!r} exists already; free it or choose another id")

    def _touch(self, sequence: CachedSequence) -> None:
        self._clock += 1
        sequence.last_use = self._clock

    def _full(self, needed: int, available: int) -> CacheFullError:
        frame_bytes = self.layout.frame_bytes
        return CacheFullError(
            f"{needed} frames ({needed * frame_bytes} bytes) are needed, {available} of "
            f"{self.pool.num_frames} are free or can be evicted; finish sequences, or give the "
            f"cache more memory than {self.pool.num_frames * frame_bytes} bytes"
        )

    def _evict(self) -> None:
        self._drop(self._sequences[self._queue.pop()])
        self.evicted += 1

    def _drop(self, sequence: CachedSequence) -> None:
        release = self.pool.release if sequence.parked else self._release
        for handles in list(sequence.holdings()):
            release(handles)
        del self._sequences[sequence.seq_id]

    def _slide(self, step: Step) -> None:
        for sequence, number, needed, going in step.slides:
            sequence.tables[number].drop_leading(
                needed // self.layout.classes[number].tokens_per_frame
            )
            sequence.first[number] = needed
            self._release(going)

    def _perform(self, step: Step) -> None:
        self._slide(step)
        for number, lifetime in enumerate(self.layout.classes):
            kind = "kv" if lifetime.window is None else f"window {lifetime.window}"
            growths = [(s.tables[number], n) for s, at, n in step.growths if at == number]
            if growths:
                self._grow_tables(growths, self._allocate(sum(n for _, n in growths), kind))
            copies = [(s, entry) for s, at, entry in step.copies if at == number]
            if copies:
                self._copy_frames(number, copies, self._allocate(len(copies), kind))
        size = self.layout.state.num_frames
        states = step.new_states + step.moved_states
        if states:
            handles = self._allocate(size * len(states), "state").reshape(len(states), size)
            for sequence, fresh in zip(states, handles, strict=True):
                if sequence.state is None:
                    sequence.state = fresh
                else:
                    sequence.next_state = fresh
            self.pool.zero(handles[: len(step.new_states)].reshape(-1))

    def _grow_tables(self, growths: list[tuple[FrameTable, int]], handles: Handles) -> None:
        """Deal out frames. Tables that grow alike get theirs in turns, so that a batch in step
        keeps one distance between neighbours, and can be read as one strided tensor."""
        counts = {count for _, count in growths}
        if len(counts) == 1:
            for column, (table, _) in zip(
                handles.reshape(-1, len(growths)).T, growths, strict=True
            ):
                table.extend(column)
            return
        start = 0
        for table, count in growths:
            table.extend(handles[start : start + count])
            start += count

    def _copy_frames(
        self, number: int, copies: list[tuple[CachedSequence, int]], fresh: Handles
    ) -> None:
        old = [
            sequence.tables[number].replace(entry, handle)
            for (sequence, entry), handle in zip(copies, fresh.tolist(), strict=True)
        ]
        self.pool.copy(np.array(old, dtype=np.int64), fresh)
        for handle in old:
            self._release(np.array([handle], dtype=np.int64))
        self.copied_bytes += len(old) * self.layout.frame_bytes

    def _check_resume(self, sequence: CachedSequence, position: int) -> None:
        if not 0 <= position <= sequence.num_tokens:
            raise SequenceError(
                f"sequence {sequence.seq_id!r} has {sequence.num_tokens} tokens, so it cannot go "
                f"on at {position}"
            )
        for lifetime, first in zip(self.layout.classes, sequence.first, strict=True):
            if position and lifetime.first_needed(position + 1) < first:
                raise NotSupportedError(
                    f"sequence {sequence.seq_id!r} cannot go on at {position}: tokens before "
                    f"{first} have left the window of {lifetime.window}; keep more history, or "
                    "compute the sequence again"
                )
        kept = (0, sequence.num_tokens, *sequence.checkpoints)
        if self.layout.state.num_frames and position not in kept:
            raise NotSupportedError(
                f"sequence {sequence.seq_id!r} cannot go on at {position}: its recurrent state is "
                f"kept at {sorted(set(kept))} only; set checkpoints, or compute it again"
            )

    def _cut(self, sequence: CachedSequence, num_tokens: int) -> None:
        """Go back to `num_tokens` tokens, which was checked to be possible."""
        for number, lifetime in enumerate(self.layout.classes):
            keep = -(-num_tokens // lifetime.tokens_per_frame)
            self._release(sequence.tables[number].cut(keep))
            sequence.first[number] = min(sequence.first[number], num_tokens)
        if not num_tokens:
            sequence.first = [0] * len(sequence.first)
        if self.layout.state.num_frames and num_tokens != sequence.num_tokens:
            old, sequence.state = sequence.state, None
            if num_tokens:
                sequence.state = sequence.checkpoints[num_tokens]
                self.pool.retain(sequence.state)
                self._pin(sequence.state)
            if old is not None:
                self._release(old)
            for position in [p for p in sequence.checkpoints if p > num_tokens]:
                self._release(sequence.checkpoints.pop(position))
        sequence.num_tokens = num_tokens

    def _cut_out(self, sequence: CachedSequence, begin: int, end: int) -> None:
        """Remove [begin, end) from the middle."""
        num_tokens, removed = sequence.num_tokens, end - begin
        if self.layout.state.num_frames:
            raise NotSupportedError(
                f"tokens [{begin}, {end}) of sequence {sequence.seq_id!r} cannot be removed: the "
                "recurrent state has taken them; remove a tail down to a checkpoint instead"
            )
        if self._rotated_layers and self._shift is None:
            raise NotSupportedError(
                f"tokens [{begin}, {end}) of sequence {sequence.seq_id!r} cannot be removed: "
                f"layers {sorted(self._rotated_layers)} store keys that were rotated by their "
                "position, and the cache has no shift to turn them by"
            )
        left = num_tokens - removed
        firsts = []
        for lifetime, first in zip(self.layout.classes, sequence.first, strict=True):
            after = first if first <= begin else max(begin, first - removed)
            if lifetime.first_needed(left + 1) < after:
                raise NotSupportedError(
                    f"tokens [{begin}, {end}) of sequence {sequence.seq_id!r} cannot be removed: "
                    f"the window of {lifetime.window} would lack tokens that were dropped"
                )
            firsts.append(after)
        self._own_frames(sequence, begin, left, firsts)
        for number, lifetime in enumerate(self.layout.classes):
            table, T = sequence.tables[number], lifetime.tokens_per_frame
            frames = self._frames(table)
            stored = max(end, sequence.first[number])
            for place, layer_idx in enumerate(lifetime.layer_ids):
                view = arena.row_view(self.pool, lifetime, place)
                rows = arena.read_rows(view, frames, stored, num_tokens)
                if layer_idx in self._rotated_layers:
                    assert self._shift is not None
                    rows = self._shift(layer_idx, rows, -removed)
                arena.write_rows(view, frames, stored - removed, rows)
            self._release(table.cut(-(-left // T)))
        sequence.first = firsts
        sequence.num_tokens = left

    def _own_frames(
        self, sequence: CachedSequence, begin: int, end: int, firsts: Sequence[int]
    ) -> None:
        """Make the frames of the tokens [begin, end) this sequence's own: copies of shared ones,
        and new ones where rows move down to frames that are gone (from `firsts` on)."""
        shared: list[list[int]] = []
        missing: list[int] = []
        for table, lifetime, first in zip(
            sequence.tables, self.layout.classes, firsts, strict=True
        ):
            T = lifetime.tokens_per_frame
            missing.append(max(0, table.num_gone - first // T))
            start, stop = max(begin // T, table.num_gone), -(-end // T)
            counts = self.pool.references(table.entries[start:stop]).tolist()
            shared.append([start + i for i, n in enumerate(counts) if n > 1])
        needed = sum(len(entries) for entries in shared) + sum(missing)
        if needed > self.pool.num_free + self.num_evictable:
            raise self._full(needed, self.pool.num_free + self.num_evictable)
        while needed > self.pool.num_free:
            self._evict()
        for number, entries in enumerate(shared):
            table = sequence.tables[number]
            table.revive_leading(self._allocate(missing[number], "kv"))
            copies = [(sequence, entry) for entry in entries]
            if copies:
                self._copy_frames(number, copies, self._allocate(len(copies), "kv"))

    def _frames(self, table: FrameTable) -> Tensor:
        return torch.from_numpy(frame_ids(table.entries)).to(self.pool.device, torch.int64)

    def _allocate(self, count: int, kind: str) -> Handles:
        handles = self.pool.allocate(count, kind)
        self._pin(handles)
        return handles

    def _release(self, handles: Handles) -> None:
        """Give back references of a running sequence."""
        if len(handles):
            self._unpin(handles)
            self.pool.release(handles)

    def _pin(self, handles: Handles) -> None:
        if len(self._pins) <= self.pool.num_frames:
            grown = np.zeros(self.pool.num_frames + 1, dtype=np.int32)
            grown[: len(self._pins)] = self._pins
            self._pins = grown
        frames = handles & FRAME_MASK
        pins = self._pins[frames] + 1
        self._pins[frames] = pins
        self._num_pinned += int(np.count_nonzero(pins == 1))

    def _unpin(self, handles: Handles) -> None:
        frames = handles & FRAME_MASK
        pins = self._pins[frames] - 1
        self._pins[frames] = pins
        self._num_pinned -= len(pins) - int(np.count_nonzero(pins))

    def _useful_bytes(self) -> int:
        """Bytes of visible rows by frame, at most once per frame, and of distinct states."""
        best: dict[int, int] = {}
        for sequence in self._sequences.values():
            for number, lifetime in enumerate(self.layout.classes):
                T, first = lifetime.tokens_per_frame, sequence.first[number]
                entries = sequence.tables[number].entries.tolist()
                for entry, handle in enumerate(entries):
                    visible = min(sequence.num_tokens, (entry + 1) * T) - max(first, entry * T)
                    if handle >= 0 and visible > 0:
                        used = visible * lifetime.bytes_per_token
                        best[handle] = max(best.get(handle, 0), used)
            states = (sequence.state, sequence.next_state, *sequence.checkpoints.values())
            for state in states:
                if state is not None:
                    best[int(state[0])] = self.layout.state.useful_bytes
        return sum(best.values())

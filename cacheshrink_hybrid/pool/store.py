"""Sequences that share one pool: steps, forks, removal, and prefixes that outlive them.

A step takes new tokens in two calls, so that it can be refused before anything is computed:

    store.reserve(ids, counts)     frames for the new tokens; all sequences or none
    ...                            the model writes rows and states through the tables
    store.commit(ids)              the tokens now count

Sequences share frames. A fork copies nothing; a shared, partly filled last frame is copied before
its first new row is written, and a shared state is read from the old frames and written to fresh
ones. A call that raises has changed nothing.

What each operation does to one sequence stands in a module of its own: `reservation`, `committing`,
`sharing`, `going_back`, `prefixes`. The store looks sequences up, refuses what does not fit, and
finds the frames.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from ..errors import FrameError, NotSupportedError, SequenceError
from . import frame_tables
from .accounts import StoreStatistics, check_accounts, store_statistics
from .committing import check_commit, commit_tokens
from .frame_ledger import Handles
from .frame_pool import FramePool
from .going_back import check_resume, cut_tail
from .held_frames import HeldFrames
from .layout import Layout
from .prefixes.lookup import Lookup
from .prefixes.state_codes import StateCodes
from .prefixes.tree import PrefixTree
from .reservation import Step, check_room, perform_step, plan_step, slide_windows
from .roster import Roster
from .sharing import share_prefix


class SequenceStore:
    """Sequences of one model in one pool, of which this is the only user.

    Args:
        layout: where the bytes lie.
        pool: frames of `layout.frame_bytes` bytes, all free.
        history: tokens kept beyond every window, so that so many can be removed again.
        policy: which prefix is evicted first; see `eviction`.
        codes: of the states that prefixes keep, see `PrefixTree`.

    Attributes:
        prefixes: kept for sequences to come, as long as nobody needs their frames.
        table_changes: per lifetime class; grows whenever a step gives a sequence other frames than
            it had. Between two such steps, tables that were looked up stay right.
    """

    def __init__(
        self,
        layout: Layout,
        pool: FramePool,
        *,
        history: int = 0,
        policy: str = "lru",
        codes: StateCodes | None = None,
    ) -> None:
        if pool.frame_bytes != layout.frame_bytes or pool.num_held:
            raise FrameError(
                f"a store needs a pool of its own with frames of {layout.frame_bytes} bytes; got "
                f"frames of {pool.frame_bytes} bytes, {pool.num_held} of them held"
            )
        self.layout = layout
        self.pool = pool
        self.history = history
        self.table_changes = [0] * len(layout.classes)
        self._roster = Roster(len(layout.classes))
        self._frames = HeldFrames(pool)
        self._runs: dict[Hashable, Handles] = {}
        self.prefixes = PrefixTree(layout, self._frames, policy, codes)

    # What is there

    def __contains__(self, seq_id: Hashable) -> bool:
        return seq_id in self._roster

    @property
    def seq_ids(self) -> list[Hashable]:
        return [sequence.seq_id for sequence in self._roster]

    @property
    def num_available(self) -> int:
        """Frames that are free, or would be if every prefix were evicted."""
        return self.pool.num_free + self._frames.num_evictable

    def need(self, num_tokens: int) -> int:
        """Frames that suffice a new sequence to take `num_tokens` tokens, in steps of any size."""
        classes = self.layout.classes
        kv = sum(lifetime.most_frames(num_tokens, self.history) for lifetime in classes)
        return kv + self.layout.state.num_frames

    def num_tokens(self, seq_id: Hashable) -> int:
        return self._roster.known(seq_id).num_tokens

    def num_held(self, seq_id: Hashable) -> int:
        """References to frames that a sequence has."""
        return self._roster.known(seq_id).num_held

    def first_position(self, seq_id: Hashable, class_number: int) -> int:
        """Position of the first token of a lifetime class from which on all are stored; those of a
        pending step count."""
        sequence = self._roster.known(seq_id)
        lifetime, begin = self.layout.classes[class_number], sequence.num_tokens
        start = lifetime.first_stored(begin, sequence.pending, self.history)
        return start if start > begin else sequence.first[class_number]

    def origin(self, seq_id: Hashable) -> int:
        """Position from which on classes with a limit count the tokens of a sequence."""
        return self._roster.known(seq_id).origin

    def set_origin(self, seq_id: Hashable, position: int) -> None:
        """Let classes with a limit count from here on. Rows of tokens before have no meaning."""
        self._roster.known(seq_id).origin = position

    def checkpoints(self, seq_id: Hashable) -> list[int]:
        """Positions, in tokens, at which a state of the sequence is kept."""
        return sorted(self._roster.known(seq_id).checkpoints)

    # Life and death

    def create(self, seq_id: Hashable) -> None:
        """An empty sequence; it takes no frames yet."""
        self._roster.add(self._roster.new(seq_id))

    def free(self, *seq_ids: Hashable) -> None:
        """Give back everything that these sequences hold and forget them."""
        for sequence in self._roster.distinct(seq_ids):
            for handles in list(sequence.holdings()):
                self._frames.release(handles)
            self._roster.forget(sequence)

    # Steps

    def reserve(
        self,
        seq_ids: Sequence[Hashable],
        counts: int | Sequence[int],
        *,
        revocable: Sequence[bool] | None = None,
    ) -> None:
        """Make room for `counts` new tokens of each sequence, for all of them or for none.

        Tokens that the first new one does not see are dropped from the windows. Prefixes are
        evicted as needed.

        Args:
            revocable: of each sequence, whether 0 of the tokens may be committed after all, so
                that its state is written beside the one before; None for no sequence. Rows can be
                taken back in any case.

        Raises:
            CacheFullError: too few frames, even if all prefixes were evicted.
            SequenceError: an id is unknown, named twice or has a step pending.
        """
        sequences = self._roster.all_ready(seq_ids)
        counts = [counts] * len(sequences) if isinstance(counts, int) else list(counts)
        if len(counts) != len(sequences) or min(counts, default=0) < 0:
            raise SequenceError(
                f"counts={counts} must be one number >= 0 for each of {len(sequences)} sequences"
            )
        stays = [False] * len(sequences) if revocable is None else list(revocable)
        if len(stays) != len(sequences):
            raise SequenceError(f"revocable={stays} must be told of each of {len(sequences)}")
        asked = self.layout, self._frames, sequences, counts, self.history
        step = plan_step(*asked, revocable=stays)
        if self._num_missing(step) > 0:
            alone = plan_step(*asked, revocable=stays, alone=True)
            check_room(self.pool, alone.num_needed, self.num_available + alone.num_unpinned)
        while (missing := self._num_missing(step)) > 0:
            self.prefixes.evict_some(missing)
            step = plan_step(*asked, revocable=stays)
        perform_step(self.layout, self._frames, step)
        self._note_changes(step)
        for sequence, count in zip(sequences, counts, strict=True):
            sequence.pending = count

    def _num_missing(self, step: Step) -> int:
        """Frames that a step needs and that are not free."""
        return step.num_needed - step.num_freed - self.pool.num_free

    def commit(
        self, seq_ids: Sequence[Hashable], counts: int | Sequence[int] | None = None
    ) -> None:
        """Count reserved tokens as stored; None for all of them.

        Raises:
            NotSupportedError: fewer tokens than reserved, though a recurrent state has taken all,
                or the rows of the last tokens alone were kept.
        """
        sequences = self._roster.distinct(seq_ids)
        if counts is None:
            counts = [sequence.pending for sequence in sequences]
        counts = [counts] * len(sequences) if isinstance(counts, int) else list(counts)
        for sequence, count in zip(sequences, counts, strict=True):
            check_commit(self.layout, sequence, count, self.history)
        for sequence, count in zip(sequences, counts, strict=True):
            commit_tokens(self.layout, self._frames, sequence, count, self.history)

    def trim(self, seq_ids: Sequence[Hashable]) -> None:
        """Drop the tokens that have left the windows, beyond `history`, now instead of with the
        next step."""
        sequences = self._roster.all_ready(seq_ids)
        counts, stays = [1] * len(sequences), [False] * len(sequences)
        step = plan_step(
            self.layout, self._frames, sequences, counts, self.history, revocable=stays
        )
        slide_windows(self.layout, self._frames, step)
        self._note_changes(step)

    def _note_changes(self, step: Step) -> None:
        for number in step.changed:
            self.table_changes[number] += 1

    # Sharing

    def fork(self, source: Hashable, target: Hashable) -> None:
        """A twin of `source`, that shares all its frames."""
        self.copy_prefix(source, target, self._roster.known(source).num_tokens)

    def copy_prefix(self, source: Hashable, target: Hashable, num_tokens: int) -> None:
        """A new sequence of the first `num_tokens` tokens of `source`; copies nothing.

        Raises:
            SequenceError: unknown source, taken target, or more tokens than there are.
            NotSupportedError: a window has dropped tokens that the next one would see, or no
                recurrent state is kept at `num_tokens`.
        """
        origin = self._roster.ready(source)
        twin = self._roster.new(target)
        check_resume(self.layout, origin, num_tokens)
        share_prefix(self.layout, self._frames, origin, twin, num_tokens)
        self._roster.add(twin)

    def offer_prefix(
        self,
        seq_id: Hashable,
        tokens: Sequence[int],
        *,
        checkpoint: bool = True,
        priority: float = 0.0,
        kind: str = "",
    ) -> None:
        """Keep a sequence as it stands for others that will begin alike. Copies nothing but a state
        that is kept in a code; what the sequence goes on to write is.

        Args:
            tokens: all that are committed.
            checkpoint, priority, kind: see `PrefixTree.offer`.
        """
        sequence = self._roster.ready(seq_id)
        self.prefixes.offer(tokens, sequence, checkpoint=checkpoint, priority=priority, kind=kind)

    def resume_prefix(self, seq_id: Hashable, tokens: Sequence[int]) -> Lookup:
        """Let an empty sequence begin with what is kept of the tokens that it is to take, of which
        the last is left to compute. Copies nothing but a state that was kept in a code."""
        return self.prefixes.resume(tokens, self._roster.ready(seq_id))

    # Frames beside sequences

    def hold_run(self, name: Hashable, count: int) -> Handles:
        """Take `count` neighbouring frames under a name, for content that no sequence describes.

        Raises:
            CacheFullError: no such run is free.
            SequenceError: the name is taken.
        """
        if name in self._runs:
            raise SequenceError(f"frames are held as {name!r} already; drop them first")
        handles = self._runs[name] = self._frames.allocate_run(count, "state")
        return handles

    def drop_run(self, name: Hashable) -> None:
        """Give those frames back."""
        if name not in self._runs:
            raise SequenceError(f"no frames are held as {name!r}")
        self._frames.release(self._runs.pop(name))

    # Going back

    def checkpoint(self, seq_id: Hashable) -> None:
        """Keep the recurrent state after the tokens so far, to come back to. Costs no copy now;
        the next step writes the state to fresh frames. Nothing to do without a state."""
        sequence = self._roster.ready(seq_id)
        position = sequence.num_tokens
        if sequence.state is None or position in sequence.checkpoints:
            return
        self._frames.retain(sequence.state)
        sequence.checkpoints[position] = sequence.state

    def can_resume(self, seq_id: Hashable, position: int) -> bool:
        """Whether the token at `position` could come next, after removing those from there on."""
        sequence = self._roster.known(seq_id)
        try:
            check_resume(self.layout, sequence, position)
        except (NotSupportedError, SequenceError):
            return False
        return True

    def remove(self, seq_id: Hashable, begin: int) -> None:
        """Forget the tokens from `begin` on: go back to an earlier state of the sequence. None are
        taken out of its middle: those behind were computed from them, at positions of their own.

        Raises:
            NotSupportedError: the sequence could not go on exactly: tokens that the next one sees
                have left a window, or no recurrent state is kept at `begin`.
        """
        sequence = self._roster.ready(seq_id)
        if begin != sequence.num_tokens:
            check_resume(self.layout, sequence, begin)
            cut_tail(self.layout, self._frames, sequence, begin)

    # Tables and bytes

    def frame_table(self, seq_ids: Sequence[Hashable], class_number: int = 0) -> Tensor:
        """Frame numbers (B, most frames), int32 on the pool's device, -1 where unused or gone."""
        sequences = [self._roster.known(seq_id) for seq_id in seq_ids]
        return frame_tables.frame_table(sequences, class_number, self.pool.device)

    def context_lens(self, seq_ids: Sequence[Hashable]) -> Tensor:
        """Committed tokens (B,), int32 on the pool's device."""
        lengths = [self._roster.known(seq_id).num_tokens for seq_id in seq_ids]
        return torch.tensor(lengths, dtype=torch.int32, device=self.pool.device)

    def state_tables(self, seq_ids: Sequence[Hashable]) -> tuple[Tensor, Tensor]:
        """Frames to read and to write the pending step's states, (B, state frames) each."""
        sequences = [self._roster.known(seq_id) for seq_id in seq_ids]
        return frame_tables.state_tables(sequences, self.pool.device)

    def digest(self, seq_id: Hashable) -> str:
        """SHA-256 of every stored row and state byte of a sequence, wherever they lie."""
        return frame_tables.content_digest(self.layout, self.pool, self._roster.known(seq_id))

    # Checking

    def statistics(self) -> StoreStatistics:
        return store_statistics(self.layout, self._frames, self._roster, self.prefixes)

    def check_integrity(self) -> None:
        """Raise `FrameError` unless every reference is that of one sequence, run or prefix."""
        runs = self._runs.values()
        check_accounts(self.layout, self._frames, self._roster, runs, self.prefixes)
        if self.prefixes.below is not None:
            self.prefixes.below.check_integrity()

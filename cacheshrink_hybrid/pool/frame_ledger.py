"""Who holds which frame: the book-keeping of a pool, without its bytes.

A frame is free, or held with a count of references. Giving out k frames or taking them back costs
O(k) whatever the size of the pool, and happens for all k or for none.

Frames travel as *handles*: 64-bit integers of a generation (high 32 bits) and a frame number (low
32 bits). A frame's generation grows when it becomes free, so a handle from before is refused.
Frame 0 is never given out: padded rows of a batch are written there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import CacheFullError, FrameError

FRAME_BITS = 32
FRAME_MASK = (1 << FRAME_BITS) - 1
NEXT_GENERATION = 1 << FRAME_BITS
FREE = -(1 << 63)
MAX_FRAMES = 2**31 - 1

Handles = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameStatistics:
    """Frames of a pool by what they do.

    Attributes:
        total: frames that can be given out.
        free, held: they add up to `total`.
        peak: most frames held at one time.
        shared: frames with more than one reference.
        by_kind: held frames by the kind that they were allocated for.
        external_fragmentation: 1 - longest run of neighbouring free frames / free frames. Reported
            because others do; nothing here needs neighbouring frames.
    """

    total: int
    free: int
    held: int
    peak: int
    shared: int
    by_kind: dict[str, int]
    external_fragmentation: float


class FrameLedger:
    """References, generations and the free stack of `num_frames` frames.

    Args:
        num_frames: frames that can be given out, numbered from 1.
    """

    def __init__(self, num_frames: int) -> None:
        if not 1 <= num_frames < MAX_FRAMES:
            raise FrameError(f"num_frames={num_frames} must lie between 1 and {MAX_FRAMES - 1}")
        self.num_frames = num_frames
        self.num_free = num_frames
        self.peak_held = 0
        self.kinds: list[str] = []
        # Last in, first out, and a fresh pool gives out ascending numbers: 1, 2, 3, ...
        self._free = np.arange(num_frames, 0, -1, dtype=np.int64)
        self._handles = np.arange(num_frames + 1, dtype=np.int64) | FREE
        self._references = np.zeros(num_frames + 1, dtype=np.int32)
        self._kind = np.zeros(num_frames + 1, dtype=np.int8)
        self._mark = np.zeros(num_frames + 1, dtype=np.int64)
        self._iota = np.arange(min(num_frames, 4096), dtype=np.int64)

    @property
    def num_held(self) -> int:
        return self.num_frames - self.num_free

    def allocate(self, count: int, kind: str = "kv") -> Handles:
        """Handles of `count` frames with one reference each, in ascending order in a fresh pool.

        Raises:
            CacheFullError: fewer than `count` frames are free; none is given out.
        """
        if count < 0:
            raise FrameError(f"count={count} frames cannot be allocated; give a number >= 0")
        left = self.num_free - count
        if left < 0:
            raise CacheFullError(
                f"{count} frames are needed, {self.num_free} of {self.num_frames} are free; "
                "finish or evict sequences, or give the cache more memory"
            )
        frames = self._free[left : self.num_free][::-1]
        handles = self._handles[frames]
        handles ^= FREE
        self._handles[frames] = handles
        self._references[frames] = 1
        self._kind[frames] = self._kind_number(kind)
        self.num_free = left
        held = self.num_frames - left
        self.peak_held = max(self.peak_held, held)
        return handles

    def allocate_run(self, count: int, kind: str) -> Handles:
        """`count` neighbouring frames, for content that is to be one tensor; O(free frames).

        Raises:
            CacheFullError: no such run is free.
        """
        free = np.sort(self._free[: self.num_free])
        last = free[count - 1 :]  # empty if fewer are free than are wanted
        starts = np.flatnonzero(last - free[: len(last)] == count - 1)
        if not len(starts):
            raise CacheFullError(
                f"no {count} neighbouring frames are free among {self.num_free}; grow the pool"
            )
        return self.claim(free[starts[0] : starts[0] + count], kind)

    def claim(self, frames: NDArray[np.int64], kind: str) -> Handles:
        """Handles of these free frames, with one reference each; O(free frames).

        Raises:
            FrameError: not all of them are free.
        """
        stack = self._free[: self.num_free]
        inside = np.isin(stack, frames)
        if np.count_nonzero(inside) != len(frames):
            raise FrameError(f"frames {frames[:8].tolist()} are not all free")
        # Moved to the top of the stack, from where `allocate` takes them in order.
        self._free[: self.num_free] = np.concatenate([stack[~inside], frames[::-1]])
        return self.allocate(len(frames), kind)

    def retain(self, handles: Handles) -> None:
        """Add one reference to each frame; a frame may be named once per call.

        Raises:
            FrameError: a handle is stale, or a frame is named twice; no count is changed.
        """
        frames = self._frames_of(handles)
        self._references[frames] += 1

    def release(self, handles: Handles) -> Handles:
        """Take one reference from each frame; frames without any become free.

        Returns:
            The handles that became stale by it.

        Raises:
            FrameError: a handle is stale, or a frame is named twice; no count is changed.
        """
        frames = self._frames_of(handles)
        references = self._references[frames]
        references -= 1
        self._references[frames] = references
        freed = frames[references == 0]
        count = len(freed)
        # Pushed in reverse, so that the frames come out again in the order of `handles`.
        self._free[self.num_free : self.num_free + count] = freed[::-1]
        self._handles[freed] += NEXT_GENERATION + FREE
        self.num_free += count
        return handles if count == len(frames) else handles[references == 0]

    def references(self, handles: Handles) -> NDArray[np.int32]:
        """Reference counts, after checking the handles."""
        return self._references[self._frames_of(handles)]

    def reference_counts(self) -> NDArray[np.int32]:
        """Reference counts of frames 0 to num_frames; not to be written to."""
        return self._references

    def grow(self, num_frames: int) -> None:
        """Add frames up to `num_frames`; they are given out after those that are free now."""
        added = num_frames - self.num_frames
        if added < 0 or num_frames >= MAX_FRAMES:
            raise FrameError(
                f"a pool of {self.num_frames} frames cannot have {num_frames}; it only grows"
            )
        fresh = np.arange(num_frames, self.num_frames, -1, dtype=np.int64)
        self._free = np.concatenate(
            [fresh, self._free[: self.num_free], np.zeros(self.num_held, dtype=np.int64)]
        )
        self._handles = np.concatenate([self._handles, fresh[::-1] | FREE])
        for name in ("_references", "_kind", "_mark"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros(added, dtype=old.dtype)]))
        self._iota = np.arange(min(num_frames, 4096), dtype=np.int64)
        self.num_frames = num_frames
        self.num_free += added

    def statistics(self) -> FrameStatistics:
        held = self._references > 0
        kinds = np.bincount(self._kind[held], minlength=len(self.kinds))
        free = np.sort(self._free[: self.num_free])
        longest = 0
        if len(free):
            breaks = np.flatnonzero(np.diff(free) != 1)
            edges = np.concatenate([[-1], breaks, [len(free) - 1]])
            longest = int(np.diff(edges).max())
        return FrameStatistics(
            total=self.num_frames,
            free=self.num_free,
            held=self.num_held,
            peak=self.peak_held,
            shared=int((self._references > 1).sum()),
            by_kind={kind: int(kinds[number]) for number, kind in enumerate(self.kinds)},
            external_fragmentation=1 - longest / self.num_free if self.num_free else 0.0,
        )

    def check_integrity(self) -> None:
        """Raise `FrameError` unless every frame is either free once or held, and frame 0 neither.
        O(number of frames)."""
        free = self._free[: self.num_free]
        times = np.bincount(free, minlength=self.num_frames + 1)
        held = self._references > 0
        if (self._references < 0).any():
            raise FrameError("a frame has a negative count of references")
        if times[0] or held[0]:
            raise FrameError("frame 0 is free or held; it is neither")
        wrong = np.flatnonzero(times[1:] + held[1:] != 1) + 1
        if len(wrong):
            raise FrameError(f"frames {wrong[:8].tolist()} are not free or held exactly once")
        if ((self._handles & FRAME_MASK)[1:] != np.arange(1, self.num_frames + 1)).any():
            raise FrameError("a frame's handle names another frame")
        if ((self._handles < 0) == held).any():
            raise FrameError("a free frame has a handle, or a held one has none")

    def _frames_of(self, handles: Handles) -> NDArray[np.int64]:
        if handles.dtype != np.int64:
            raise FrameError(
                f"handles are 64-bit integers, not {handles.dtype}; give them as they came"
            )
        frames = handles & FRAME_MASK
        count = len(frames)
        if not count:
            return frames
        # Bytes compare faster than arrays do.
        try:
            current = self._handles[frames].tobytes() == handles.tobytes()
        except IndexError:
            current = False
        if not current:
            self._refuse(handles)
        if count > 1:
            iota = self._iota[:count] if count <= len(self._iota) else np.arange(count)
            self._mark[frames] = iota
            if self._mark[frames].tobytes() != iota.tobytes():
                raise FrameError("a frame is named twice in one call; name it once per call")
        return frames

    def _refuse(self, handles: Handles) -> None:
        for handle in handles.tolist():
            frame = handle & FRAME_MASK
            if not 1 <= frame <= self.num_frames:
                raise FrameError(f"frame {frame} is none of frames 1 to {self.num_frames}")
            if self._handles[frame] != handle:
                raise FrameError(
                    f"the handle of frame {frame} (generation {handle >> FRAME_BITS}) is "
                    "stale: the frame was released since, or never given out"
                )

    def _kind_number(self, kind: str) -> int:
        try:
            return self.kinds.index(kind)
        except ValueError:
            self.kinds.append(kind)
            return len(self.kinds) - 1


def frame_ids(handles: Handles) -> NDArray[np.int32]:
    """The frame numbers in handles; -1 stays -1."""
    return np.where(handles < 0, -1, handles & FRAME_MASK).astype(np.int32)

"""Allocators of KV and recurrent state in one budget of bytes, as engines build them.

Each is counters and tables without data. A sequence is admitted with its state and its tokens, or
not at all; it grows by tokens; it leaves. What they are modelled on:

    bytes alone   no pages and no slots: a sequence holds the bytes that it uses; what no allocator
                  can do better than
    frames        equal frames for everything, the allocator of this package (the real ledger)
    fixed_dual    one pool of token pages and one of state slots, split once (SGLang's default
                  ratio 0.9 of state to KV bytes is a share of 0.474; 0.9 as a share is printed too)
    uniform_page  one page size for every layer, set by the state of one layer (vLLM)
    lcm           large pages of the least common multiple, cut for one kind each (Jenga)
    two_ended     states from one end, tokens from the other, holes closed by moving (SGLang's
                  unified pool); the best that any allocator of whole pages and slots can do
    migrating     two pools whose free ends are moved over in batches under pressure (AVMP)
    padded        one pool of slots as large as the larger of a state and a token page
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ...errors import CacheFullError, PlanError
from ...pool.frame_ledger import FrameLedger, Handles
from .allocator import PAGE_TOKENS, Allocator, Sizes

ALIGNMENT = 256


class Frames(Allocator):
    """Equal frames; every grant is a real call of `FrameLedger`."""

    def __init__(self, sizes: Sizes, capacity: int) -> None:
        super().__init__(sizes, capacity)
        self.frame_bytes = sizes.layout.frame_bytes
        self.lifetime = sizes.layout.classes[0]
        self.unit_tokens = self.lifetime.tokens_per_frame
        self.ledger = FrameLedger(capacity // self.frame_bytes - 1)
        self._handles: dict[int, list[Handles]] = {}
        self._held: dict[int, int] = {}

    def _take(self, name: int, units: int, new: bool) -> bool:
        states = self.sizes.layout.state.num_frames if new else 0
        more = units - (0 if new else self._held[name])
        try:
            handles = self.ledger.allocate(max(0, more) + states)
        except CacheFullError:
            return False
        self._handles.setdefault(name, []).append(handles)
        self._held[name] = units
        return True

    def release(self, name: int) -> None:
        for handles in self._handles.pop(name):
            self.ledger.release(handles)
        del self._held[name]

    @property
    def held_bytes(self) -> int:
        return self.ledger.num_held * self.frame_bytes

    def check(self) -> None:
        self.ledger.check_integrity()
        references = sum(len(handles) for owned in self._handles.values() for handles in owned)
        assert references == self.ledger.num_held


class BytesAlone(Allocator):
    """Nothing but a sum that stays within the capacity."""

    unit_tokens = 1

    def __init__(self, sizes: Sizes, capacity: int) -> None:
        super().__init__(sizes, capacity)
        self._held: dict[int, int] = {}
        self._sum = 0

    def _units(self, num_tokens: int) -> int:
        return num_tokens

    def _take(self, name: int, units: int, new: bool) -> bool:
        held = self.sizes.useful(units)
        more = held - self._held.get(name, 0)
        if self._sum + more > self.capacity:
            return False
        self._held[name] = held
        self._sum += more
        return True

    def release(self, name: int) -> None:
        self._sum -= self._held.pop(name)

    @property
    def held_bytes(self) -> int:
        return self._sum


class FixedDual(Allocator):
    """Token pages and state slots in pools of their own."""

    def __init__(self, sizes: Sizes, capacity: int, state_share: float) -> None:
        super().__init__(sizes, capacity)
        self.page_bytes = PAGE_TOKENS * sizes.token_bytes
        self.slots = int(capacity * state_share) // max(1, sizes.state_bytes)
        self.pages = int(capacity * (1 - state_share)) // self.page_bytes
        self._held: dict[int, int] = {}
        self.used_pages = 0

    def _take(self, name: int, units: int, new: bool) -> bool:
        more = units - self._held.get(name, 0)
        if (new and len(self._held) >= self.slots) or self.used_pages + more > self.pages:
            return False
        self._held[name] = units
        self.used_pages += more
        return True

    def release(self, name: int) -> None:
        self.used_pages -= self._held.pop(name)

    @property
    def held_bytes(self) -> int:
        return len(self._held) * self.sizes.state_bytes + self.used_pages * self.page_bytes


class Migrating(FixedDual):
    """Two pools that lend each other free units from their ends, in batches."""

    BATCH = 128

    def _take(self, name: int, units: int, new: bool) -> bool:
        if super()._take(name, units, new):
            return True
        state_bytes, page_bytes = max(1, self.sizes.state_bytes), self.page_bytes
        # Free units beyond what this call takes itself.
        spare_pages = self.pages - self.used_pages - (units - self._held.get(name, 0))
        spare_slots = self.slots - len(self._held) - new
        if spare_slots < 0:
            lent = min(spare_pages, max(self.BATCH, state_bytes // page_bytes + 1))
            slots = max(0, lent) * page_bytes // state_bytes
            if slots:
                self.pages -= lent
                self.slots += slots
        elif spare_pages < 0:
            lent = min(spare_slots, self.BATCH)
            self.slots -= lent
            self.pages += lent * state_bytes // page_bytes
        return super()._take(name, units, new)


class UniformPage(Allocator):
    """One page size: as many tokens of one attention layer as the state of one mixer needs. Widths
    that differ by layer count as their mean, which flatters it: real pages take the widest."""

    def __init__(self, sizes: Sizes, capacity: int) -> None:
        super().__init__(sizes, capacity)
        per_layer = sizes.token_bytes / sizes.num_attention
        state_page = sizes.state_bytes / max(1, sizes.num_mixers)
        self.unit_tokens = PAGE_TOKENS * max(1, math.ceil(state_page / (PAGE_TOKENS * per_layer)))
        self.page_bytes = self.unit_tokens * per_layer
        self.pages = int(capacity / self.page_bytes)
        self._held: dict[int, int] = {}
        self.used_pages = 0

    def _take(self, name: int, units: int, new: bool) -> bool:
        due = units * self.sizes.num_attention + self.sizes.num_mixers
        more = due - self._held.get(name, 0)
        if self.used_pages + more > self.pages:
            return False
        self._held[name] = due
        self.used_pages += more
        return True

    def release(self, name: int) -> None:
        self.used_pages -= self._held.pop(name)

    @property
    def held_bytes(self) -> int:
        return int(self.used_pages * self.page_bytes)


class Padded(Allocator):
    """Slots as large as the larger of a state and a page of tokens."""

    def __init__(self, sizes: Sizes, capacity: int) -> None:
        super().__init__(sizes, capacity)
        self.slot_bytes = max(sizes.state_bytes, PAGE_TOKENS * sizes.token_bytes)
        self.slots = capacity // self.slot_bytes
        self._held: dict[int, int] = {}
        self.used = 0

    def _take(self, name: int, units: int, new: bool) -> bool:
        more = units + 1 - self._held.get(name, 0)
        if self.used + more > self.slots:
            return False
        self._held[name] = units + 1
        self.used += more
        return True

    def release(self, name: int) -> None:
        self.used -= self._held.pop(name)

    @property
    def held_bytes(self) -> int:
        return self.used * self.slot_bytes


class TwoEnded(Allocator):
    """States grow from one end and tokens from the other; when the gap between them is too small,
    the holes of either side are closed by moving what lies at its edge."""

    def __init__(self, sizes: Sizes, capacity: int) -> None:
        super().__init__(sizes, capacity)
        self.unit_bytes = {
            "state": -(-sizes.state_bytes // ALIGNMENT) * ALIGNMENT,
            "kv": PAGE_TOKENS * sizes.token_bytes,
        }
        self.span = {"state": 0, "kv": 0}
        self.live = {"state": 0, "kv": 0}
        self._held: dict[int, int] = {}

    def _take(self, name: int, units: int, new: bool) -> bool:
        need = {"state": int(new), "kv": units - self._held.get(name, 0)}
        total = sum((self.live[kind] + need[kind]) * size for kind, size in self.unit_bytes.items())
        if total > self.capacity:
            return False
        for kind, count in need.items():
            self.live[kind] += count
            self.span[kind] = max(self.span[kind], self.live[kind])
        while sum(self.span[k] * size for k, size in self.unit_bytes.items()) > self.capacity:
            kind = max(self.span, key=lambda k: (self.span[k] - self.live[k]) * self.unit_bytes[k])
            self.span[kind] -= 1
            self.moved_bytes += self.unit_bytes[kind]
        self._held[name] = units
        return True

    def release(self, name: int) -> None:
        self.live["kv"] -= self._held.pop(name)
        self.live["state"] -= 1

    @property
    def held_bytes(self) -> int:
        return sum(self.live[kind] * size for kind, size in self.unit_bytes.items())


class TwoLevel(Allocator):
    """Large pages that states and token pages both divide; each serves one kind while in use."""

    def __init__(self, sizes: Sizes, capacity: int) -> None:
        super().__init__(sizes, capacity)
        kv = PAGE_TOKENS * sizes.token_bytes
        state = max(ALIGNMENT, -(-sizes.state_bytes // ALIGNMENT) * ALIGNMENT)
        self.large_bytes = math.lcm(kv, state)
        self.large_pages = capacity // self.large_bytes
        if self.large_pages < 4:
            raise PlanError(
                f"a large page takes {self.large_bytes} bytes, too many for {capacity} bytes"
            )
        self.slots = {"kv": self.large_bytes // kv, "state": self.large_bytes // state}
        self.free_pages = self.large_pages
        self._used: dict[str, dict[int, int]] = {"kv": {}, "state": {}}
        self._open: dict[str, set[int]] = {"kv": set(), "state": set()}
        self._places: dict[int, dict[str, list[int]]] = {}
        self._next = 0

    def _room(self, kind: str) -> int:
        return sum(self.slots[kind] - self._used[kind][page] for page in self._open[kind])

    def _take(self, name: int, units: int, new: bool) -> bool:
        places = self._places.get(name, {"kv": [], "state": []})
        need = {"kv": units - len(places["kv"]), "state": int(new)}
        fresh = sum(
            -(-max(0, count - self._room(kind)) // self.slots[kind]) for kind, count in need.items()
        )
        if fresh > self.free_pages:
            return False
        self._places[name] = places
        for kind, count in need.items():
            used, available = self._used[kind], self._open[kind]
            for _ in range(max(0, count)):
                # Pages where this sequence lies already come first, so that they empty together.
                page = next((p for p in reversed(places[kind][-1:]) if p in available), None)
                if page is None:
                    page = next(iter(available), None)
                if page is None:
                    self._next += 1
                    page = self._next
                    used[page] = 0
                    available.add(page)
                    self.free_pages -= 1
                used[page] += 1
                if used[page] == self.slots[kind]:
                    available.discard(page)
                places[kind].append(page)
        return True

    def release(self, name: int) -> None:
        for kind, pages in self._places.pop(name).items():
            used, available = self._used[kind], self._open[kind]
            for page in pages:
                used[page] -= 1
                available.add(page)
                if not used[page]:
                    del used[page]
                    available.discard(page)
                    self.free_pages += 1

    @property
    def held_bytes(self) -> int:
        return (self.large_pages - self.free_pages) * self.large_bytes


ALLOCATORS: dict[str, Callable[[Sizes, int], Allocator]] = {
    "bytes alone": BytesAlone,
    "frames": Frames,
    "two_ended": TwoEnded,
    "uniform_page": UniformPage,
    "lcm": TwoLevel,
    "migrating": lambda sizes, capacity: Migrating(sizes, capacity, 0.5),
    "fixed_dual 0.474": lambda sizes, capacity: FixedDual(sizes, capacity, 0.474),
    "fixed_dual 0.9": lambda sizes, capacity: FixedDual(sizes, capacity, 0.9),
    "padded": Padded,
}
"""Every allocator by name; a `PlanError` from one means that it cannot serve the model at all."""

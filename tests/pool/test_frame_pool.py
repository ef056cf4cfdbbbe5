"""Frames are given out and taken back all or none, and never to two owners."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cacheshrink_hybrid.errors import CacheFullError, FrameError
from cacheshrink_hybrid.pool.frame_ledger import FrameLedger, frame_ids
from cacheshrink_hybrid.pool.frame_pool import POISON, FramePool


def test_a_fresh_pool_gives_out_neighbours() -> None:
    ledger = FrameLedger(10)
    assert frame_ids(ledger.allocate(3)).tolist() == [1, 2, 3]
    assert frame_ids(ledger.allocate(2)).tolist() == [4, 5]


def test_last_in_first_out() -> None:
    ledger = FrameLedger(10)
    held = ledger.allocate(6)
    ledger.release(held[1:4])
    assert frame_ids(ledger.allocate(3)).tolist() == [2, 3, 4]


def test_all_or_nothing() -> None:
    ledger = FrameLedger(4)
    held = ledger.allocate(3)
    with pytest.raises(CacheFullError, match="2 frames are needed, 1 of 4 are free"):
        ledger.allocate(2)
    assert ledger.num_free == 1
    ledger.check_integrity()
    ledger.release(held)
    assert len(ledger.allocate(4)) == 4


def test_shared_frames_live_until_their_last_owner() -> None:
    ledger = FrameLedger(4)
    held = ledger.allocate(2)
    ledger.retain(held[:1])
    assert ledger.references(held).tolist() == [2, 1]
    assert ledger.release(held).tolist() == held[1:].tolist()
    assert ledger.num_free == 3
    assert ledger.release(held[:1]).tolist() == held[:1].tolist()
    assert ledger.num_free == 4


@pytest.mark.parametrize("operation", ["release", "retain", "references"])
def test_bad_handles_are_refused_and_change_nothing(operation: str) -> None:
    ledger = FrameLedger(8)
    held, gone = ledger.allocate(3), ledger.allocate(2)
    ledger.release(gone)
    again = ledger.allocate(1)
    assert frame_ids(again)[0] == frame_ids(gone)[0]
    for bad, message in (
        (gone[:1], "stale"),
        (gone[1:], "stale"),
        (np.array([0], dtype=np.int64), "none of frames 1 to 8"),
        (np.array([7], dtype=np.int64), "stale"),
        (np.array([9 | 1 << 32], dtype=np.int64), "none of frames"),
        (held.astype(np.int32), "64-bit"),
        (np.concatenate([held[:1], held[:1]]), "twice"),
        (np.concatenate([held, gone[:1]]), "stale"),
    ):
        with pytest.raises(FrameError, match=message):
            getattr(ledger, operation)(bad)
        assert ledger.references(held).tolist() == [1, 1, 1]
        assert ledger.num_free == 4
        ledger.check_integrity()


def test_nothing_is_a_fine_amount() -> None:
    ledger = FrameLedger(2)
    none = ledger.allocate(0)
    ledger.retain(none)
    assert len(ledger.release(none)) == 0
    with pytest.raises(FrameError, match=">= 0"):
        ledger.allocate(-1)


def test_growing_keeps_what_is_held() -> None:
    pool = FramePool(3, 4, poison=True)
    held = pool.allocate(2)
    pool.frames[1] = 7
    pool.frames[2] = 8
    pool.grow(6)
    assert pool.frames[1:3, 0].tolist() == [7, 8]
    assert (pool.num_free, pool.num_held) == (4, 2)
    assert sorted(frame_ids(pool.allocate(4)).tolist()) == [3, 4, 5, 6]
    pool.release(held)
    pool.check_integrity()
    with pytest.raises(FrameError, match="only grows"):
        pool.grow(5)


def test_statistics() -> None:
    ledger = FrameLedger(10)
    kv, state = ledger.allocate(5), ledger.allocate(2, "state")
    ledger.retain(kv[:2])
    ledger.release(kv[3:4])
    statistics = ledger.statistics()
    assert statistics.by_kind == {"kv": 4, "state": 2}
    assert (statistics.total, statistics.free, statistics.held) == (10, 4, 6)
    assert (statistics.peak, statistics.shared) == (7, 2)
    assert statistics.external_fragmentation == pytest.approx(1 - 3 / 4)
    ledger.release(state)
    assert ledger.statistics().by_kind == {"kv": 4, "state": 0}


def test_poison_finds_writes_to_free_frames() -> None:
    pool = FramePool(4, 8, poison=True)
    held = pool.allocate(2)
    pool.zero(held)
    pool.copy(held[:1], held[1:])
    assert pool.frames[1:3].sum() == 0
    pool.release(held)
    assert (pool.frames[1:] == POISON).all()
    pool.check_integrity()
    pool.frames[2, 3] = 1
    with pytest.raises(FrameError, match="frames \\[2\\] were written to"):
        pool.check_integrity()


def test_the_sink_is_zero_and_nobodys() -> None:
    pool = FramePool(3, 16)
    assert pool.frames[0].sum() == 0
    assert 0 not in frame_ids(pool.allocate(3))
    assert pool.nbytes == 4 * 16


@pytest.mark.parametrize("arguments", [(0, 8), (-1, 8), (2**31, 8), (4, 0)])
def test_sizes_that_make_no_pool(arguments) -> None:
    with pytest.raises(FrameError):
        FramePool(*arguments)


def test_integrity_sees_each_fault() -> None:
    for break_it, message in (
        (lambda ledger: ledger._references.__setitem__(1, 0), "exactly once"),
        (lambda ledger: ledger._free.__setitem__(0, 2), "exactly once"),
        (lambda ledger: ledger._references.__setitem__(0, 1), "frame 0"),
        (lambda ledger: ledger._references.__setitem__(1, -1), "negative"),
        (lambda ledger: ledger._handles.__setitem__(1, 2), "another frame"),
        (lambda ledger: ledger._handles.__setitem__(3, 3), "has a handle"),
    ):
        ledger = FrameLedger(4)
        ledger.allocate(2)
        ledger.check_integrity()
        break_it(ledger)
        with pytest.raises(FrameError, match=message):
            ledger.check_integrity()


@pytest.mark.parametrize("seed", range(4))
def test_random_traffic_against_sets(seed: int) -> None:
    """Counts of references equal those of a model made of Python sets; events are reproducible."""
    random = np.random.default_rng(seed)
    ledger = FrameLedger(50)
    owners: list[np.ndarray] = []
    for _ in range(400):
        action = random.integers(3)
        count = int(random.integers(0, 20))
        if action == 0:
            try:
                owners.append(ledger.allocate(count))
            except CacheFullError:
                assert count > ledger.num_free
        elif action == 1 and owners:
            ledger.release(owners.pop(random.integers(len(owners))))
        elif owners:
            shared = owners[random.integers(len(owners))]
            ledger.retain(shared)
            owners.append(shared)
        expected = np.zeros(51, dtype=int)
        for owner in owners:
            expected[frame_ids(owner)] += 1
        assert (ledger._references == expected).all()
        assert ledger.num_free == (expected[1:] == 0).sum()
        ledger.check_integrity()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu() -> None:
    pool = FramePool(4, 8, device="cuda", poison=True)
    held = pool.allocate(2)
    pool.zero(held)
    assert torch.equal(pool.frames[1].cpu(), torch.zeros(8, dtype=torch.uint8))
    pool.release(held)
    pool.check_integrity()

"""How long the frame ledger takes per call, against the size of the pool."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from ...pool.frame_ledger import FrameLedger

WARMUP_CALLS = 200


def measure_latency(
    pool_sizes: Sequence[int], counts: Sequence[int], *, calls: int = 3000, seed: int = 0
) -> list[dict[str, float]]:
    """Time of `allocate` and `release`, in a pool half full with its free frames in disorder.

    Returns:
        One record per pool size and number of frames per call: microseconds, median and 99th
        percentile.
    """
    records = []
    for num_frames in pool_sizes:
        for count in counts:
            ledger = FrameLedger(num_frames)
            held = [ledger.allocate(count) for _ in range(min(num_frames // count, 4000))]
            np.random.default_rng(seed).shuffle(held)
            for handles in held[::2]:
                ledger.release(handles)
            taken, given = [], []
            for _ in range(calls + WARMUP_CALLS):
                began = time.perf_counter_ns()
                handles = ledger.allocate(count)
                middle = time.perf_counter_ns()
                ledger.release(handles)
                taken.append(middle - began)
                given.append(time.perf_counter_ns() - middle)
            record: dict[str, float] = {"pool frames": num_frames, "frames per call": count}
            for name, times in (("allocate", taken), ("release", given)):
                for share in (50, 99):
                    value = np.percentile(times[WARMUP_CALLS:], share) / 1000
                    record[f"{name} p{share} us"] = float(value)
            records.append(record)
    return records

"""Where prefixes go that the pool has no room for: settings, and the memories that they make."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from ..byte_counts import parse_bytes
from ..integers import check_counts
from ..pool.budget import budget_bytes, frames_within
from ..pool.frame_pool import FramePool
from ..pool.prefixes.tier import HOST, Tier
from ..pool.store import SequenceStore
from .prefix_disk import disk_tier

DISK_MEMORY = "4GiB"


def add_tiers(
    store: SequenceStore,
    model: PreTrainedModel,
    policy: str,
    *,
    host_memory: int | float | str | None,
    disk: str | Path | None,
    disk_memory: int | str,
) -> None:
    """Let what a store's prefixes lose fall into memories below the pool.

    Args:
        policy: what these evict first.
        host_memory: of the host, beside a pool that may lie there as well: bytes, text such as
            "8GiB", or a fraction of what is free; None for none.
        disk: directory; None for none.
        disk_memory: most that the frames in it take, bytes or text.

    Raises:
        CacheFullError: less than a frame.
        CheckpointError, OutputError: see `disk_tier`.
        ConfigError: no amount of memory, or more than there is.
    """
    layout, tree = store.layout, store.prefixes
    if host_memory is not None:
        frames = frames_within(budget_bytes(host_memory), layout.frame_bytes)
        pool = FramePool(frames, layout.frame_bytes)
        tree.below = host = Tier(HOST, layout, pool, policy, tree.codes)
        tree = host.tree
    if disk is not None:
        tree.below = disk_tier(disk, _disk_bytes(disk_memory), store, model, policy)


def _disk_bytes(given: int | str) -> int:
    num_bytes = parse_bytes(given) if isinstance(given, str) else given
    check_counts(prefix_disk_memory=num_bytes)
    return num_bytes

"""What an engine owes once its requests are over."""

from __future__ import annotations

from cacheshrink_hybrid.engine import LLM


def assert_idle(llm: LLM) -> None:
    """Nothing waits, runs or holds frames but prefixes, and these go when they are told to."""
    assert not llm.has_requests
    assert (llm.statistics.waiting, llm.statistics.running) == (0, 0)
    assert llm.store.seq_ids == []
    reuse = llm._scheduler.reuse
    assert reuse is None or reuse._begun == {}
    llm.store.check_integrity()
    assert llm.store.num_available == llm.store.pool.num_frames
    llm.reset_prefix_cache()
    assert llm.store.pool.num_held == 0
    llm.store.check_integrity()

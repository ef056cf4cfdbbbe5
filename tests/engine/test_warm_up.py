"""Steps that are taken so that nobody waits for a compilation."""

from __future__ import annotations

import pytest
from torch import Tensor

from cacheshrink_hybrid.engine import LLM, SamplingParams
from cacheshrink_hybrid.engine.runner import Runner
from cacheshrink_hybrid.engine.warm_up import warm_up
from tests.engine.idle import assert_idle
from tests.engine.shipped import shipped_model

DRAFTS = {"num_speculative_tokens": 3, "prompt_lookup_max": 2}


@pytest.mark.parametrize("drafts", [None, DRAFTS])
def test_the_engine_stays_as_it_is(drafts: dict | None) -> None:
    model, tokenizer = shipped_model()
    settings = {"cache_memory": "8MiB", "speculative_config": drafts}
    llm, cold = (LLM(model, tokenizer, **settings) for _ in range(2))
    before = llm.statistics
    warm_up(llm, speculative_config=drafts)
    assert llm.statistics == before
    assert_idle(llm)
    params = SamplingParams(max_tokens=8, temperature=0)
    due, found = (engine.generate("Once upon", params)[0].token_ids for engine in (cold, llm))
    assert found == due


def test_all_kinds_of_steps_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt's later pieces, and decoding of one request and of two."""
    taken = set()
    prefill, decode = Runner.prefill, Runner.decode

    def noted_prefill(runner: Runner, seq_id: str, tokens: list[int], **settings: bool) -> Tensor:
        taken.add("later piece" if runner.store.num_tokens(seq_id) else "first piece")
        return prefill(runner, seq_id, tokens, **settings)

    def noted_decode(runner: Runner, seq_ids: list, tokens: list[int]) -> Tensor:
        taken.add(f"decoding of {len(seq_ids)}")
        return decode(runner, seq_ids, tokens)

    monkeypatch.setattr(Runner, "prefill", noted_prefill)
    monkeypatch.setattr(Runner, "decode", noted_decode)
    model, tokenizer = shipped_model()
    warm_up(LLM(model, tokenizer, cache_memory="8MiB"))
    assert taken == {"first piece", "later piece", "decoding of 1", "decoding of 2"}

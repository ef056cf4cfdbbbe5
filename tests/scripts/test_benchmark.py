"""What benchmarks share."""

from __future__ import annotations

import pytest
from transformers import DynamicCache

from scripts import benchmark
from scripts.benchmark import GateError, live_bytes_per_token
from tests.families.tiny_configs import tiny_model


def test_a_cache_that_holds_nothing_is_no_size(monkeypatch) -> None:
    """A model that does not know its cache's name reads no history, and says nothing."""
    model = tiny_model("llama")
    assert live_bytes_per_token(model, 16, 8) > 0
    monkeypatch.setattr(
        benchmark, "cached_logits", lambda *args: (None, DynamicCache(config=model.config))
    )
    with pytest.raises(GateError, match="LlamaForCausalLM holds nothing of 16 tokens"):
        live_bytes_per_token(model, 16, 8)

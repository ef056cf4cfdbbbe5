"""What is compiled when it is first used, compiled before anybody waits for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..kernels.backend import Backend
from .llm import LLM
from .sampling_params import SamplingParams

PIECE, NUM_TOKENS = 8, 20
"""Tokens of a prompt that are read at once, and all of it: later pieces read what the first one
left."""
NEW_TOKENS = 6
TOKEN = 0


def warm_up(
    llm: LLM,
    *,
    backend: Backend | None = None,
    speculative_config: Mapping[str, Any] | None = None,
) -> None:
    """Let the model take the steps that requests take, in a small pool beside the engine's: prompts
    in pieces, decoding of one and of two requests, drafts. The engine stays as it is.

    Args:
        backend, speculative_config: of the engine.
    """
    store = llm.store
    need = 2 * store.need(NUM_TOKENS + NEW_TOKENS)
    own = LLM(
        llm.runner.model,
        cache_memory=need * store.pool.frame_bytes,
        max_batch=2,
        prefill_chunk=PIECE,
        backend=backend,
        cuda_graphs=False,
        prefix_cache=False,
        speculative_config=speculative_config,
    )
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)
    for count in (1, 2):
        own.generate([[TOKEN] * NUM_TOKENS] * count, params)

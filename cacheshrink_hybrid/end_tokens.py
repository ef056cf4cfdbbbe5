"""After which tokens a model says nothing more."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel


def end_tokens(model: PreTrainedModel) -> frozenset[int]:
    """Those of its generation config; none where it names none."""
    config: Any = getattr(model, "generation_config", None) or model.config
    tokens = config.eos_token_id
    if tokens is None:
        return frozenset()
    return frozenset(tokens if isinstance(tokens, (list, tuple)) else [int(tokens)])

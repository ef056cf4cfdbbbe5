"""The config type under which the Auto classes of transformers know saved models."""

from __future__ import annotations

from transformers import PreTrainedConfig

MODEL_TYPE = "cacheshrink_hybrid"


class CacheShrinkConfig(PreTrainedConfig):
    """Config of a saved model as the Auto classes read it."""

    model_type = MODEL_TYPE

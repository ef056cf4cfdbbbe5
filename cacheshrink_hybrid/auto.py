"""What the Auto classes of transformers see of a saved model: a config type and a model class.

Both only lead to `checkpoint.load_model`; the model they return is of the source's class.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

MODEL_TYPE = "cacheshrink_hybrid"
REMOTE_CODE_NAME = "modeling_cacheshrink_hybrid"


class CacheShrinkConfig(PreTrainedConfig):
    """Config of a saved model as the Auto classes read it."""

    model_type = MODEL_TYPE


class CacheShrinkForCausalLM(PreTrainedModel):
    """Stands for every converted model in the Auto classes."""

    config_class = CacheShrinkConfig

    @classmethod
    def from_pretrained(cls, path, *args, **kwargs):
        from .checkpoint import load_model

        if args:
            raise TypeError("from_pretrained of a converted model takes keyword arguments only")
        for name in ("code_revision", "_from_auto"):
            kwargs.pop(name, None)
        return load_model(path, **kwargs)


def register() -> None:
    """Let `AutoModelForCausalLM.from_pretrained` load saved models without remote code."""
    AutoConfig.register(MODEL_TYPE, CacheShrinkConfig, exist_ok=True)
    AutoModelForCausalLM.register(CacheShrinkConfig, CacheShrinkForCausalLM, exist_ok=True)


def remote_code() -> str:
    """The file beside a saved model that `trust_remote_code=True` runs."""
    return (
        '"""Loads this converted model through the package; `pip install cacheshrink_hybrid`."""\n'
        "\n"
        "from cacheshrink_hybrid.auto import CacheShrinkConfig, CacheShrinkForCausalLM\n"
        "\n"
        '__all__ = ["CacheShrinkConfig", "CacheShrinkForCausalLM"]\n'
    )

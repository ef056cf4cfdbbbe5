"""What the Auto classes of transformers see of a saved model: a config type and a model class.

Both only lead to `checkpoint.load_model`; the model they return is of the source's class.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from .auto_config import MODEL_TYPE, CacheShrinkConfig

__all__ = ["MODEL_TYPE", "CacheShrinkConfig", "CacheShrinkForCausalLM"]
REMOTE_CODE_NAME = "modeling_cacheshrink_hybrid"


class CacheShrinkForCausalLM(PreTrainedModel):
    """Stands for every converted model in the Auto classes."""

    config_class = CacheShrinkConfig

    @classmethod
    def from_pretrained(cls, path, *args, **kwargs):
        from .checkpoint import load_model

        if args:
            raise TypeError("from_pretrained of a converted model takes keyword arguments only")
        for name in ("code_revision", "adapter_kwargs", "_from_auto"):
            kwargs.pop(name, None)
        return load_model(path, **kwargs)


def remote_code() -> str:
    """The file beside a saved model that `trust_remote_code=True` runs."""
    return (
        '"""Loads this converted model through the package; `pip install cacheshrink_hybrid`."""\n'
        "\n"
        "from cacheshrink_hybrid.auto import CacheShrinkConfig, CacheShrinkForCausalLM\n"
        "\n"
        '__all__ = ["CacheShrinkConfig", "CacheShrinkForCausalLM"]\n'
    )

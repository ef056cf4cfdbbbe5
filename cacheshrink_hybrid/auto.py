"""What the Auto classes of transformers see of a saved model: a config type and a model class.

Both only lead to `load_model` in `checkpoint.checkpoint`; the model they return is of a subclass of
the source's.
"""

from __future__ import annotations

from .checkpoint.auto_config import MODEL_TYPE, CacheShrinkConfig

__all__ = ["MODEL_TYPE", "CacheShrinkConfig", "CacheShrinkForCausalLM"]
REMOTE_CODE_NAME = "modeling_cacheshrink_hybrid"


class CacheShrinkForCausalLM:
    """Stands for every converted model in the Auto classes."""

    @classmethod
    def from_pretrained(cls, path, *args, **kwargs):
        from .checkpoint.checkpoint import load_model

        if args:
            raise TypeError("from_pretrained of a converted model takes keyword arguments only")
        for name in ("code_revision", "_from_auto"):
            kwargs.pop(name, None)
        return load_model(path, **kwargs)

    @classmethod
    def _from_config(cls, config, **kwargs):
        from .checkpoint.checkpoint import empty_model

        return empty_model(config, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModelForCausalLM") -> None:
        """Nothing to do: saved models carry the file that loads them with remote code."""


def remote_code() -> str:
    """The file beside a saved model that `trust_remote_code=True` runs."""
    return (
        '"""Loads this converted model through the package; `pip install cacheshrink_hybrid`."""\n'
        "\n"
        "from cacheshrink_hybrid.auto import CacheShrinkConfig, CacheShrinkForCausalLM\n"
        "\n"
        '__all__ = ["CacheShrinkConfig", "CacheShrinkForCausalLM"]\n'
    )

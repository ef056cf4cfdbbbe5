"""What the Auto classes of transformers see of a saved model: a config type and a model class.

Saved models import both from here. They only lead to `checkpoint`; the model that comes out is of
a subclass of the source's class.
"""

from __future__ import annotations

from .checkpoint.auto_config import MODEL_TYPE, CacheShrinkConfig

__all__ = ["MODEL_TYPE", "CacheShrinkConfig", "CacheShrinkForCausalLM"]


class CacheShrinkForCausalLM:
    """Stands for every converted model in the Auto classes."""

    @classmethod
    def from_pretrained(cls, path, *args, **kwargs):
        if args:
            raise TypeError("from_pretrained of a converted model takes keyword arguments only")
        for name in ("code_revision", "_from_auto"):
            kwargs.pop(name, None)
        from .checkpoint.savable_model import SavableModel

        return SavableModel.from_pretrained(path, **kwargs)

    @classmethod
    def _from_config(cls, config, **kwargs):
        from .checkpoint.load import empty_model

        return empty_model(config, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModelForCausalLM") -> None:
        """Nothing to do: saved models carry the file that loads them with remote code."""

"""The config types under which the Auto classes of transformers know saved models."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from transformers import PreTrainedConfig

from ..errors import CheckpointError
from .files import MODEL_TYPE

SOURCE_TYPE_KEY = "source_model_type"
SOURCE_ARCHITECTURES_KEY = "source_architectures"
SOURCE_NAME_KEY = "source_name"
VERSION_KEY = "format_version"
LAYOUT_KEY = "cache_layout"
DIGESTS_KEY = "weights_sha256"
OWN_KEYS = (
    SOURCE_NAME_KEY,
    SOURCE_TYPE_KEY,
    SOURCE_ARCHITECTURES_KEY,
    VERSION_KEY,
    LAYOUT_KEY,
    DIGESTS_KEY,
    "auto_map",
)
"""What a saved model's config.json has beside the values of its source's."""


class CacheShrinkConfig(PreTrainedConfig):
    """Config of a saved model as `AutoConfig` reads it: that of its source under a type of its own.

    Reading one gives a subclass that is made for the source's class, `LatentLlamaConfig` for
    `LlamaConfig`, and answers whatever that one does.
    """

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        if cls is not CacheShrinkConfig:
            return super().from_dict(config_dict, **kwargs)
        source_class: Any = _source_config_class(config_dict)
        return saved_config_class(source_class).from_dict(config_dict, **kwargs)

    def source(self) -> PreTrainedConfig:
        """The source's config with these values, a copy."""
        config = copy.deepcopy(self)
        config.architectures = config.__dict__.pop(SOURCE_ARCHITECTURES_KEY, None)
        for key in (*OWN_KEYS, "model_type"):
            config.__dict__.pop(key, None)
        config.__class__ = type(self).__bases__[0]
        return config

    def __reduce__(self) -> tuple:
        return _empty_config, (type(self).__bases__[0],), self.__dict__


def _source_config_class(values: dict[str, Any]) -> type[PreTrainedConfig]:
    # At the top, this import would ask `registration` for the class above before it is there.
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    source_type = values.get(SOURCE_TYPE_KEY)
    if source_type not in CONFIG_MAPPING:
        raise CheckpointError(
            f"config.json names {SOURCE_TYPE_KEY}={source_type!r}, which is no model type of this "
            "transformers; convert_to_mla and save_mla_model write such a file"
        )
    return CONFIG_MAPPING[source_type]


@cache
def saved_config_class(source_class: Any) -> Any:
    """`source_class` as the config of a saved model. `AutoModelForCausalLM` makes of it what it
    makes of `CacheShrinkConfig`, which importing the package has told it."""
    from transformers import AutoModelForCausalLM

    model_class = AutoModelForCausalLM._model_mapping[CacheShrinkConfig]
    namespace = {"__module__": __name__, "__doc__": source_class.__doc__, "model_type": MODEL_TYPE}
    bases = (source_class, CacheShrinkConfig)  # the source's defaults are those that count
    saved_class = type(f"Latent{source_class.__name__}", bases, namespace)
    AutoModelForCausalLM.register(saved_class, model_class, exist_ok=True)
    return saved_class


def _empty_config(source_class: Any) -> Any:
    """An instance without values, which unpickling then sets."""
    cls = saved_config_class(source_class)
    return cls.__new__(cls)

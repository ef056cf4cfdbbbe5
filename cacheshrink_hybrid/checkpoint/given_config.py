"""The config that a saved model is loaded with: the saved one, or another, with values by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import PretrainedConfig

from ..errors import ConfigError
from .auto_config import CacheShrinkConfig
from .files import shown
from .model_class import auto_class_of
from .pretrained_arguments import HUB_ARGUMENTS, MODEL_ARGUMENTS, refuse_unknown


def source_of(config: PretrainedConfig) -> PretrainedConfig:
    """The source's config of what `AutoConfig` reads from a saved model, or of such a config."""
    if isinstance(config, CacheShrinkConfig):
        return config.source()
    if (
        isinstance(config, PretrainedConfig)
        and type(config) in auto_class_of(config)._model_mapping
    ):
        return config
    raise ConfigError(
        f"config={config!r} is no config of a causal language model; give what AutoConfig reads "
        "from the directory"
    )


def with_values(config: PretrainedConfig, values: dict[str, Any]) -> PretrainedConfig:
    """The config with other values, which it must have."""
    known = {n: v for n, v in values.items() if not callable(getattr(config, n, len))}
    refuse_unknown(
        {name: value for name, value in values.items() if name not in known},
        "from_pretrained of a converted model",
        (*HUB_ARGUMENTS, *MODEL_ARGUMENTS, "verify_weights", "values of its config"),
    )
    for name, value in known.items():
        try:
            setattr(config, name, value)
        except StrictDataclassFieldValidationError as error:
            raise ConfigError(
                f"{name}={value!r} is no value that a {type(config).__name__} takes; leave it out"
            ) from error
    return config


def changed_values(saved: PretrainedConfig, given: PretrainedConfig) -> list[str]:
    """Values of a config that are others than those a model was saved with, as `name=value`."""
    before, after = saved.to_dict(), given.to_dict()
    return [
        f"{name}={value!r}"
        for name, value in after.items()
        if name in before and not name.startswith("_") and value != before[name]
    ]


def unfit(directory: Path, changed: list[str]) -> ConfigError:
    """The error for weights that have no place in a model with these values."""
    return ConfigError(
        f"the model in {directory} was saved with other values than {shown(changed)}, and its "
        "weights do not fit these; leave out what changes the structure of the model"
    )

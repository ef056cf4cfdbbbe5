"""What vLLM runs when it starts, in each of its processes."""

from __future__ import annotations

from vllm import ModelRegistry
from vllm.model_executor.models.config import MODELS_CONFIG_MAP

from ..families.vllm import VLLM_ARCHITECTURES
from ..model.latent_model import LatentModel
from .cache_specs import register_specs
from .checks import LatentModelConfig

MODEL_MODULE = f"{__package__}.model"


def register() -> None:
    """Tell vLLM of the architectures that converted models name, and how their settings are
    checked, and of the specs of their rows. The type of their configs transformers knows from
    importing the package. May be called any number of times."""
    register_specs()
    for source in VLLM_ARCHITECTURES.values():
        name = f"{LatentModel.name_prefix}{source}"
        ModelRegistry.register_model(name, f"{MODEL_MODULE}:{name}")
        MODELS_CONFIG_MAP[name] = LatentModelConfig

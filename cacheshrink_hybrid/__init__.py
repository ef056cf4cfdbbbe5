"""Compress what Hugging Face language models remember, at nearly the same perplexity.

    from cacheshrink_hybrid import convert_to_mla, compute_perplexity, save_mla_model

    model, tokenizer = convert_to_mla("path/or/name", compression_ratio=4.0)
    model.generate(**tokenizer("Once", return_tensors="pt"))

Importing the package sees to it that the Auto classes of transformers load its checkpoints, and
does no other work; each name below is loaded when it is first used.
"""

from typing import TYPE_CHECKING

from .lazy import lazy_names
from .registration import register_when_imported as _register_when_imported
from .version import __version__

if TYPE_CHECKING:
    from .cache import HybridCache, LatentCache, cache_bytes, make_cache
    from .checkpoint import load_mla_model, save_mla_model
    from .config import CompressionConfig
    from .convert import convert_model, convert_to_mla
    from .errors import CacheShrinkError
    from .evaluation import (
        compare_outputs,
        compute_perplexity,
        generate_samples,
        measure_cache_memory,
        measure_perplexity,
        measure_recall,
    )
    from .families import model_spec
    from .latent_model import plan_of
    from .original_model import compression_disabled
    from .plan import CompressionPlan
    from .training import MLATrainer, TrainingConfig

__all__ = [
    "CacheShrinkError",
    "CompressionConfig",
    "CompressionPlan",
    "HybridCache",
    "LatentCache",
    "MLATrainer",
    "TrainingConfig",
    "__version__",
    "cache_bytes",
    "compare_outputs",
    "compression_disabled",
    "compute_perplexity",
    "convert_model",
    "convert_to_mla",
    "generate_samples",
    "load_mla_model",
    "make_cache",
    "measure_cache_memory",
    "measure_perplexity",
    "measure_recall",
    "model_spec",
    "plan_of",
    "save_mla_model",
]
_HOMES = {
    "CacheShrinkError": "errors",
    "CompressionConfig": "config",
    "CompressionPlan": "plan",
    "HybridCache": "cache",
    "LatentCache": "cache",
    "MLATrainer": "training",
    "TrainingConfig": "training",
    "cache_bytes": "cache",
    "compare_outputs": "evaluation",
    "compression_disabled": "original_model",
    "compute_perplexity": "evaluation",
    "convert_model": "convert",
    "convert_to_mla": "convert",
    "generate_samples": "evaluation",
    "load_mla_model": "checkpoint",
    "make_cache": "cache",
    "measure_cache_memory": "evaluation",
    "measure_perplexity": "evaluation",
    "measure_recall": "evaluation",
    "model_spec": "families",
    "plan_of": "latent_model",
    "save_mla_model": "checkpoint",
}


__getattr__, __dir__ = lazy_names(__name__, _HOMES)

_register_when_imported()

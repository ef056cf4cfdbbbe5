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
    from .caches import HybridCache, LatentCache, cache_bytes, make_cache
    from .checkpoint.load import load_mla_model
    from .checkpoint.save import save_mla_model
    from .config import CompressionConfig
    from .conversion.convert import convert_model, convert_to_mla
    from .engine.prefix_cache import PrefixCache
    from .errors import CacheShrinkError
    from .evaluation import (
        compare_outputs,
        compute_perplexity,
        generate_samples,
        measure_cache_memory,
        measure_perplexity,
        measure_recall,
    )
    from .export.deepseek import export_deepseek
    from .families import model_spec
    from .model.attached_plan import plan_of
    from .model.original_model import compression_disabled
    from .plan import CompressionPlan
    from .training import MLATrainer, TrainingConfig

__all__ = [
    "CacheShrinkError",
    "CompressionConfig",
    "CompressionPlan",
    "HybridCache",
    "LatentCache",
    "MLATrainer",
    "PrefixCache",
    "TrainingConfig",
    "__version__",
    "cache_bytes",
    "compare_outputs",
    "compression_disabled",
    "compute_perplexity",
    "convert_model",
    "convert_to_mla",
    "export_deepseek",
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
    "HybridCache": "caches",
    "LatentCache": "caches",
    "MLATrainer": "training",
    "PrefixCache": "engine.prefix_cache",
    "TrainingConfig": "training",
    "cache_bytes": "caches",
    "compare_outputs": "evaluation",
    "compression_disabled": "model.original_model",
    "compute_perplexity": "evaluation",
    "convert_model": "conversion.convert",
    "convert_to_mla": "conversion.convert",
    "export_deepseek": "export.deepseek",
    "generate_samples": "evaluation",
    "load_mla_model": "checkpoint.load",
    "make_cache": "caches",
    "measure_cache_memory": "evaluation",
    "measure_perplexity": "evaluation",
    "measure_recall": "evaluation",
    "model_spec": "families",
    "plan_of": "model.attached_plan",
    "save_mla_model": "checkpoint.save",
}


__getattr__, __dir__ = lazy_names(__name__, _HOMES)

_register_when_imported()

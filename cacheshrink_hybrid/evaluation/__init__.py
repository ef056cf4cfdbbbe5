"""Honest measurement: everything here runs through the cache that generation uses."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .memory import measure_cache_memory
    from .outputs import compare_outputs, generate_samples
    from .perplexity import PerplexityResult, compute_perplexity, measure_perplexity
    from .recall import measure_recall

__all__ = [
    "PerplexityResult",
    "compare_outputs",
    "compute_perplexity",
    "generate_samples",
    "measure_cache_memory",
    "measure_perplexity",
    "measure_recall",
]
_HOMES = {
    "PerplexityResult": "perplexity",
    "compare_outputs": "outputs",
    "compute_perplexity": "perplexity",
    "generate_samples": "outputs",
    "measure_cache_memory": "memory",
    "measure_perplexity": "perplexity",
    "measure_recall": "recall",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)

"""Honest measurement: everything here runs through the cache that generation uses."""

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

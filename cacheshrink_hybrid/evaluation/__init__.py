"""Honest measurement: everything here runs through the cache that generation uses."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .live_model import lm_eval_model
    from .memory import measure_cache_memory
    from .outputs import compare_outputs, generate_samples
    from .perplexity import PerplexityResult, compute_perplexity, measure_perplexity
    from .recall import measure_recall
    from .retrieval import measure_retrieval
    from .retrieval_questions import retrieval_texts
    from .tasks import measure_tasks

__all__ = [
    "PerplexityResult",
    "compare_outputs",
    "compute_perplexity",
    "generate_samples",
    "lm_eval_model",
    "measure_cache_memory",
    "measure_perplexity",
    "measure_recall",
    "measure_retrieval",
    "measure_tasks",
    "retrieval_texts",
]
_HOMES = {
    "PerplexityResult": "perplexity",
    "compare_outputs": "outputs",
    "compute_perplexity": "perplexity",
    "generate_samples": "outputs",
    "lm_eval_model": "live_model",
    "measure_cache_memory": "memory",
    "measure_perplexity": "perplexity",
    "measure_recall": "recall",
    "measure_retrieval": "retrieval",
    "measure_tasks": "tasks",
    "retrieval_texts": "retrieval_questions",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)

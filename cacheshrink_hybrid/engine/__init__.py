"""Many requests from one pool of frames: continuous batching over a converted or plain model."""

from .async_llm import AsyncLLM
from .llm import LLM
from .log_probabilities import LogProbability
from .prefix_cache import PrefixCache
from .request import RequestOutput
from .sampling_params import SamplingParams
from .stream import Stream

__all__ = [
    "LLM",
    "AsyncLLM",
    "LogProbability",
    "PrefixCache",
    "RequestOutput",
    "SamplingParams",
    "Stream",
]

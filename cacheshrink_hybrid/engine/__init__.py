"""Many requests from one pool of frames: continuous batching over a converted or plain model."""

from .llm import LLM
from .prefix_cache import PrefixCache
from .request import RequestOutput
from .sampling import SamplingParams
from .stream import Stream

__all__ = ["LLM", "PrefixCache", "RequestOutput", "SamplingParams", "Stream"]

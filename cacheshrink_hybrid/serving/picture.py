"""The pool and the requests in it, as the page at `/` shows them."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from ..engine import LLM
from ..engine.request import Request
from ..model.attached_plan import is_converted, plan_of

Json = dict[str, Any]


def page() -> str:
    """The page, which asks for the picture again and again, and needs nothing else."""
    return files(__package__).joinpath("page.html").read_text(encoding="utf-8")


def picture(llm: LLM, model: str) -> Json:
    """What the pool holds at the moment. Between steps.

    Args:
        model: the served name.
    """
    now = llm.statistics
    served = llm.runner.model
    plan = plan_of(served) if is_converted(served) else None
    prefixes = now.prefixes
    frame_bytes = llm.store.layout.frame_bytes
    return {
        "model": model,
        "bytes_per_token": None if plan is None else plan.bytes_per_token,
        "bytes_per_token_16_bit": None if plan is None else plan.source_bytes_per_token,
        "frame_bytes": frame_bytes,
        "frames": now.total_frames,
        "held": dict(llm.store.pool.statistics().by_kind),
        "prefix_frames": prefixes.held_bytes // frame_bytes,
        "requests": [
            _bar(request, running=place < now.running) for place, request in enumerate(llm.requests)
        ],
        "prefixes": {
            "lookups": prefixes.lookups,
            "hits": prefixes.hits,
            "saved_tokens": prefixes.saved_tokens,
            "reasons": {**prefixes.limits, **prefixes.misses},
        },
    }


def _bar(request: Request, *, running: bool) -> Json:
    return {
        "id": f"{request.request_id}.{request.index}",
        "running": running,
        "prompt": len(request.prompt_ids),
        "computed": request.num_computed,
        "tokens": len(request.tokens),
        "longest": request.max_length,
    }

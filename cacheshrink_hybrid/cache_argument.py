"""The names under which transformers hands a cache to the parts of a model.

Releases up to 5.23 call it `past_key_values`, in recurrent layers `cache_params` and in GPT-NeoX
`layer_past`; from 5.24 on it is `cache` everywhere. A module that replaces one of transformers' own
is called with whatever name its caller uses, so ours take all of them, and refuse a cache under a
name they do not know: to overlook it would give wrong logits without a word.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from transformers import Cache, EncoderDecoderCache

from .errors import NotSupportedError

CACHE_ARGUMENTS = ("cache", "past_key_values", "cache_params", "layer_past")
"""Known names, the newest first."""


def cache_argument(taker: nn.Module | Callable[..., Any]) -> str:
    """The name under which a module, or a forward function, takes its cache: the newest it knows.

    A module's own `forward` may have been replaced by one that takes anything; then its class says.
    """
    forwards = [taker] if not isinstance(taker, nn.Module) else [taker.forward, type(taker).forward]
    for forward in forwards:
        known = inspect.signature(forward).parameters
        for name in CACHE_ARGUMENTS:
            if name in known:
                return name
    raise NotSupportedError(
        f"{getattr(forwards[-1], '__qualname__', forwards[-1])} takes no cache under any of the "
        f"names {', '.join(CACHE_ARGUMENTS)}; this release of transformers is not supported"
    )


def given_cache(arguments: Mapping[str, Any]) -> Cache | None:
    """The cache among the arguments of a call, whatever its name; None if there is none.

    Raises:
        TypeError: two different ones are given.
        NotSupportedError: it is not of transformers' layered kind.
    """
    found: dict[str, Any] = {}
    for name in CACHE_ARGUMENTS:
        if arguments.get(name) is not None:
            found[name] = arguments[name]
    if not found:
        return None
    cache, *others = found.values()
    if any(other is not cache for other in others):
        raise TypeError(f"different caches were given as {' and '.join(found)}; give one of them")
    if not isinstance(cache, Cache):
        raise NotSupportedError(
            f"a converted model cannot use a {type(cache).__name__} as its cache; use "
            "make_cache(model), which is also what generate() makes by default"
        )
    return cache


def of_own_tokens(cache: Cache | None) -> Cache | None:
    """The part of a cache that holds a decoder's own tokens: all of it without an encoder."""
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache


def take_cache(arguments: dict[str, Any]) -> Cache | None:
    """The cache among the keywords of a replaced module's call, which are left without it.

    Raises:
        TypeError: two different caches, or one under a name that this package does not know.
        NotSupportedError: it is not of transformers' layered kind.
    """
    cache = given_cache(arguments)
    for name in CACHE_ARGUMENTS:
        arguments.pop(name, None)
    for name, value in arguments.items():
        if isinstance(value, Cache):
            raise TypeError(
                f"a {type(value).__name__} was given as {name!r}, a name of the cache that this "
                f"package does not know ({', '.join(CACHE_ARGUMENTS)}); this release of "
                "transformers is newer than it supports, install a tested one"
            )
    return cache

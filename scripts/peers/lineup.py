"""All methods, in the order of measuring."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version

from cacheshrink_hybrid.errors import ConfigError

from . import (
    cacheshrink,
    kivi,
    kvquant,
    llama_cpp,
    nvfp4,
    ours,
    quantized_cache,
    turboquant,
    vllm_int4,
)
from .method import Method

PEERS = (vllm_int4, nvfp4, turboquant, kivi, quantized_cache, kvquant, cacheshrink, llama_cpp)


def all_methods(ratios: Sequence[float]) -> list[Method]:
    """The source first, then ours, then peers."""
    peers = [method for module in PEERS for method in module.methods()]
    return [quantized_cache.source(), *ours.methods(ratios), *peers]


def chosen(methods: Sequence[Method], patterns: Sequence[str]) -> list[Method]:
    """Those with a name like one of the patterns (`*`, `?`), and what they are compared with.

    Raises:
        ConfigError: a pattern that no method has.
    """
    names = [method.name for method in methods]
    idle = [p for p in patterns if not any(fnmatchcase(name, p) for name in names)]
    if idle:
        raise ConfigError(f"no method is called {', '.join(idle)}; known are {', '.join(names)}")
    wanted = {m.name for m in methods if any(fnmatchcase(m.name, p) for p in patterns)}
    wanted |= {m.base for m in methods if m.name in wanted}
    return [method for method in methods if method.name in wanted]


def installed(method: Method) -> str | None:
    """Name and version of the package that a method runs on; None where it is not installed, or
    none is needed."""
    if method.package is None:
        return None
    name = method.package.partition("==")[0]
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return None

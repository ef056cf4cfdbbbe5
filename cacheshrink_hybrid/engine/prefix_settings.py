"""How an engine keeps prefixes: every setting beside whether it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from ..errors import ConfigError, unknown_names
from ..pool.prefixes.placement import Placement
from ..pool.prefixes.state_codes import DEFAULT_KEPT_STATE
from .prefix_tiers import DISK_MEMORY


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixSettings:
    """Arguments of `LLM` that are about prefixes.

    Attributes:
        prefix_eviction: which prefix goes first, see `pool.eviction`.
        prefix_placement: where in prompts states are kept: a name such as `learned` or
            `block_512`, or a `Placement` (`pool.prefixes.placement`).
        prefix_state_dtype: how recurrent states are kept for others: in this code of
            `pool.prefixes.state_codes` where they are wider, or `live`, as they are. They are coded
            once, and decoded by whoever goes on from them.
        prefix_host_memory: of the host, for prefixes that the pool has no room for: bytes, text, or
            a fraction of the free memory. They are copied back when a prompt begins so.
        prefix_disk: directory for those that find no room there either, or of the pool itself; the
            next engine of the same model goes on with what is in it. One at a time may use it.
        prefix_disk_memory: most that `prefix_disk` takes, bytes or text.
        prefixes: directory that `PrefixCache.save` wrote, to begin with.
    """

    prefix_eviction: str = "learned"
    prefix_placement: str | Placement = "learned"
    prefix_state_dtype: str = DEFAULT_KEPT_STATE
    prefix_host_memory: int | float | str | None = None
    prefix_disk: str | Path | None = None
    prefix_disk_memory: int | str = DISK_MEMORY
    prefixes: str | Path | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Settings by name.

        Raises:
            ConfigError: a name that is none of them.
        """
        fault = unknown_names(given, [field.name for field in fields(cls)])
        if fault is not None:
            raise ConfigError(f"unknown settings of the engine: {fault}")
        return cls(**given)

    def check_used(self, reuses: bool) -> None:
        """Refuse what an engine that keeps no prefixes would not use.

        Raises:
            ConfigError: a directory or memory for prefixes is given all the same.
        """
        for name in ("prefixes", "prefix_host_memory", "prefix_disk"):
            if getattr(self, name) is not None and not reuses:
                raise ConfigError(f"{name}=... needs a prefix cache; leave prefix_cache=True")

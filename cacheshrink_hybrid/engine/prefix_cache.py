"""Prompts of `generate()` that begin alike.

    with PrefixCache(model, max_bytes="256MiB") as prefixes:
        for question in questions:
            model.generate(**tokenizer(document + question, return_tensors="pt"))
    print(prefixes.statistics)

Prompts are prefilled here, row by row, from what is kept of those before. What `generate()` gets is
a cache of its own, with a copy of all but the last token; it may do with it what it likes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from ..cache_argument import CACHE_ARGUMENTS, cache_argument
from ..caches import HybridCache, make_cache
from ..caches.kept_sequences import KeptSequence, cache_of, copy_out, line_up
from ..errors import ConfigError, NotSupportedError
from ..families import model_spec
from ..families.vision import media_tokens
from ..integers import check_counts
from ..placement import input_device
from ..pool.budget import budget_bytes
from ..pool.prefixes.lookup import (
    OTHER_ANGLES,
    TOO_LONG,
    UNEVEN,
    WHOLE_PROMPTS,
    PrefixStatistics,
)
from ..pool.prefixes.placement import Placement, placement_of
from ..pool.prefixes.prompt import Prompt
from ..pool.prefixes.state_codes import DEFAULT_KEPT_STATE
from .intake import check_words
from .prefix_files import load_prefixes, save_prefixes
from .prefix_reuse import PrefixReuse
from .prefix_tiers import DISK_MEMORY, add_tiers
from .runner import Runner

PREFILL_CHUNK = 2048
"""Convolutions and masks cost more in pieces than at once, which is how `generate()` alone takes a
prompt; longer ones are cut, so that what a pass needs has an end."""


@dataclass(slots=True, eq=False)
class ModelPrompt(Prompt):
    """A prompt that is computed but for its last token; see `prefix_reuse.Served`."""

    generation: int = 0
    side: int = 0
    reads_prompt: bool = False


class PrefixCache:
    """What prompts of one model leave behind for others that begin alike.

    As a context it is in the place of the model's `generate`; `cache_for` gives caches for calls of
    one's own. Any number of threads may use it.

    Args:
        model: converted or not.
        max_bytes: of what is kept, and of one prompt at a time beside it: bytes, text such as
            "2GiB", or a fraction of the free memory.
        prefill_chunk: most tokens that are computed at once.
        eviction, placement, state_dtype, host_memory, disk, disk_memory: see the settings of `LLM`
            that have `prefix_` before these names.
        prefixes: directory that `save` wrote, to begin with.

    Raises:
        ConfigError: a setting that makes no sense, or more memory than there is.
        CacheFullError: memory for less than one sequence, or than the `prefixes`.
        CheckpointError: `prefixes` are damaged, or of another model.
        NotSupportedError: the model counts no tokens in its cache, or stores what a pool cannot.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        max_bytes: int | float | str = "1GiB",
        prefill_chunk: int = PREFILL_CHUNK,
        eviction: str = "learned",
        placement: str | Placement = "learned",
        state_dtype: str = DEFAULT_KEPT_STATE,
        host_memory: int | float | str | None = None,
        disk: str | Path | None = None,
        disk_memory: int | str = DISK_MEMORY,
        prefixes: str | Path | None = None,
    ) -> None:
        check_counts(prefill_chunk=prefill_chunk)
        if not model_spec(model.config.get_text_config(decoder=True)).attention_layers:
            raise NotSupportedError(
                f"a {type(model).__name__} has recurrent layers only, whose cache counts no tokens "
                "for generate() to go on from; serve it with cacheshrink_hybrid.engine.LLM"
            )
        self.model = model
        self._media_tokens = media_tokens(model.config)
        self.prefill_chunk = prefill_chunk
        self._runner = Runner(
            model,
            budget_bytes(max_bytes, input_device(model)),
            max_batch=1,
            cuda_graphs=False,
            eviction=eviction,
            prefix_state_dtype=state_dtype,
        )
        self.store = self._runner.store
        self._reuse = PrefixReuse(self._runner, placement_of(placement))
        self._lock = threading.Lock()
        self._next_id = 0
        add_tiers(
            self.store,
            model,
            eviction,
            host_memory=host_memory,
            disk=disk,
            disk_memory=disk_memory,
        )
        if prefixes is not None:
            load_prefixes(prefixes, self.store, model)

    @property
    def statistics(self) -> PrefixStatistics:
        return self.store.prefixes.statistics()

    def save(self, directory: str | Path) -> None:
        """Write all that is kept, for `PrefixCache` and `LLM` to begin with.

        Raises:
            OutputError: it cannot be written.
        """
        with self._lock:
            save_prefixes(directory, self.store, self.model)

    # For generate()

    def __enter__(self) -> PrefixCache:
        if "generate" in vars(self.model):
            raise NotSupportedError(
                "the model's generate has been replaced already, perhaps by another PrefixCache; "
                "leave that first"
            )
        self.model.generate = self.generate
        return self

    def __exit__(self, *reason: object) -> None:
        vars(self.model).pop("generate", None)

    def generate(self, inputs: Tensor | None = None, **arguments: Any) -> Any:
        """`model.generate` with what is kept of the prompts.

        Calls go through as they are that bring a cache, or want one of another kind or none; whose
        prompts are not token ids, or may have padding that no `attention_mask` tells; that bring
        images or other tensors beside the prompts, since equal token ids may stand for other
        images; and that decode assisted, which transformers does not begin from a cache.
        """
        ids = arguments.get("input_ids") if inputs is None else inputs
        if ids is not None and not self._goes_through(ids, arguments):
            copies = max(self._wish(arguments, name, 1) for name in COPYING)
            cache = self.cache_for(ids, arguments.get("attention_mask"), copies=copies)
            arguments[cache_argument(self.model)] = cache
        return type(self.model).generate(self.model, inputs, **arguments)

    def cache_for(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, copies: int = 1
    ) -> HybridCache:
        """A cache with all but the last token of these prompts, to be given to `generate()` with
        the whole prompts; empty where the prompts cannot be kept, which `statistics` counts.

        Args:
            input_ids: (B, S), padded on the left.
            attention_mask: (B, S), 0 for padding; None for no padding.
            copies: of every row, as many as beams or returned sequences.

        Raises:
            ConfigError: no tokens, a mask of another shape, or tokens that stand for images.
            NotSupportedError: padding elsewhere than on the left.
        """
        prompts = _without_padding(input_ids, attention_mask)
        for tokens in prompts:
            check_words(tokens, self._media_tokens)
        num_slots = input_ids.shape[1] - 1
        with self._lock:
            reason = self._fault(prompts, num_slots)
            if reason is not None:
                for tokens in prompts:
                    self._reuse.count_miss(len(tokens), reason)
            side = self._runner.sides.side(max(map(len, prompts)))
            kept = [] if reason else [self._computed(tokens, side) for tokens in prompts]
        if not any(sequence.num_tokens for sequence in kept):
            return make_cache(self.model)
        cache = cache_of(self.model, self._runner.cache.planned, kept, num_slots)
        if copies > 1:
            cache.batch_repeat_interleave(copies)
        return cache

    # Inside

    def _goes_through(self, ids: Tensor, arguments: dict[str, Any]) -> bool:
        """Whether a call is none that prefixes help."""
        names = (*CACHE_ARGUMENTS, *ASSISTING)
        given = any(arguments.get(name) is not None for name in names)
        given = given or any(
            _brings_more(value) for name, value in arguments.items() if name not in PROMPT
        )
        other = any(self._wish(arguments, name, None) is not None for name in OTHER_WAYS)
        if given or other or not self._wish(arguments, "use_cache", True):
            return True
        if ids.ndim != 2 or not ids.numel() or ids.is_floating_point():
            return True
        if any(bool((ids == token).any()) for token in self._media_tokens):
            return True
        padding = self._wish(arguments, "pad_token_id", None)
        masked = arguments.get("attention_mask") is not None
        return not masked and padding is not None and bool((ids == padding).any())

    def _wish(self, arguments: dict[str, Any], name: str, default: Any) -> Any:
        """A setting of a call, of its generation config, or of the model's."""
        configs = arguments.get("generation_config"), self.model.generation_config
        for value in (arguments.get(name), *(getattr(config, name, None) for config in configs)):
            if value is not None:
                return value
        return default

    def _fault(self, prompts: Sequence[list[int]], num_slots: int) -> str | None:
        """Why nothing can be kept of a batch, one of `REASONS`."""
        if not self._runner.continues_in_pieces:
            return WHOLE_PROMPTS
        longest, most = max(map(len, prompts)), self._runner.sides.longest
        if most is not None and longest > most:
            return OTHER_ANGLES
        if self.store.need(longest) > self.store.pool.num_frames:
            return TOO_LONG
        lengths = [len(tokens) - 1 for tokens in prompts]
        padded = min(lengths) < num_slots
        uneven = self._runner.equal_lengths_only or not line_up(self._runner.cache.planned, lengths)
        return UNEVEN if padded and uneven else None

    def _computed(self, tokens: list[int], side: int) -> KeptSequence:
        """All but the last token of a prompt, computed as far as it is not kept."""
        prompt = ModelPrompt(self._next_id, tokens, side=side)
        self._next_id += 1
        self.store.create(prompt.seq_id)
        try:
            self._reuse.begin(prompt)
            for size in self._sizes(prompt):
                self._feed(prompt, size)
            self._reuse.leave(prompt)
            return copy_out(self.store, self._runner.cache.planned, prompt.seq_id)
        except BaseException:
            self._reuse.break_off(prompt)
            raise
        finally:
            self.store.free(prompt.seq_id)

    def _sizes(self, prompt: ModelPrompt) -> Iterator[int]:
        """Of the pieces that are left."""
        while left := len(prompt.tokens) - 1 - prompt.num_computed:
            yield self._reuse.piece(prompt, min(left, self.prefill_chunk))

    def _feed(self, prompt: ModelPrompt, size: int) -> None:
        begin = prompt.num_computed
        self.store.reserve([prompt.seq_id], size)
        began = time.perf_counter()
        piece = prompt.tokens[begin : begin + size]
        self._runner.prefill(prompt.seq_id, piece, side=prompt.side)
        self._reuse.cost.observe(begin, begin + size, time.perf_counter() - began)
        prompt.num_computed += size
        self._reuse.pass_on(prompt)


PROMPT = ("input_ids", "inputs", "attention_mask")
"""Tensors of a call that say which tokens its prompts have."""
ASSISTING = ("assistant_model", "custom_generate")
"""Arguments of a call that decode otherwise."""
OTHER_WAYS = ("cache_implementation", "prompt_lookup_num_tokens", "assistant_early_exit")
"""Settings of a call that make another cache, or feed it otherwise."""
COPYING = ("num_beams", "num_return_sequences")
"""Settings of a call that repeat every row of the batch."""


def _brings_more(value: Any) -> bool:
    """Whether an argument is, or holds, a tensor that tells one token from another: a mask of
    images that has none tells nothing."""
    if isinstance(value, Tensor):
        return value.is_floating_point() or bool(value.any())
    if isinstance(value, np.ndarray):
        return True
    if isinstance(value, (list, tuple)):
        return any(map(_brings_more, value))
    return isinstance(value, Mapping) and any(map(_brings_more, value.values()))


def _without_padding(input_ids: Tensor, attention_mask: Tensor | None) -> list[list[int]]:
    """The tokens of every row.

    Raises:
        ConfigError, NotSupportedError: see `PrefixCache.cache_for`.
    """
    if input_ids.ndim != 2 or not input_ids.numel():
        raise ConfigError(
            f"input_ids has shape {tuple(input_ids.shape)}; give rows of at least one token, (B, S)"
        )
    if attention_mask is None:
        return input_ids.tolist()
    if attention_mask.shape != input_ids.shape:
        raise ConfigError(
            f"attention_mask has shape {tuple(attention_mask.shape)} and input_ids "
            f"{tuple(input_ids.shape)}; give the mask of these tokens"
        )
    mask = attention_mask.bool().to(input_ids.device)
    starts = mask.int().argmax(dim=1)
    if not mask[:, -1].all() or (mask.sum(dim=1) != mask.shape[1] - starts).any():
        raise NotSupportedError(
            "the attention_mask has padding behind or between tokens; pad on the left "
            "(tokenizer.padding_side = 'left')"
        )
    return [row[start:].tolist() for row, start in zip(input_ids, starts.tolist(), strict=True)]

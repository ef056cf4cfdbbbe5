"""Runs a model over sequences of a store: prefill in chunks, decoding in batches."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..caches.planned_layout import layout_of
from ..errors import NotSupportedError, UnsupportedModelError
from ..kernels.backend import Backend, implementation_on
from ..latents.attention.dense_read import MAX_DECODE_TOKENS
from ..latents.attention.module import LatentAttention
from ..model.adapters import adapted_modules, is_of_peft
from ..model.attached_plan import is_converted, plan_of
from ..pool.budget import frames_within
from ..pool.frame_pool import FramePool
from ..pool.lifetime import TOKENS
from ..pool.memory import decoding_backend
from ..pool.prefixes.state_codes import LIVE, state_codes
from ..pool.store import SequenceStore
from ..states.mixers.installation import take_over_layers
from .batch_cache import BatchCache
from .coverage import kernel_coverage
from .decode_steps import DecodeSteps
from .model_call import ModelCall
from .rotary_sides import RotarySides
from .step_tables import StepTables


class Runner:
    """A model with a store for its sequences.

    Args:
        model: converted or not, of a supported family.
        cache_bytes: most bytes of the arena.
        backend: of decoding and prefill, see `kernels.backend`.
        max_batch: most sequences of a decode step.
        cuda_graphs: replay decode steps from recorded graphs; None where that is possible: on a
            CUDA device, if kernels take all layers.
        eviction: which prefix goes first when frames are needed, see `pool.eviction`.
        prefix_state_dtype: how prefixes keep states, see `pool.prefixes.state_codes`.

    Raises:
        ConfigError: an unknown `prefix_state_dtype`.
        CacheFullError: `cache_bytes` do not hold a sequence of one frame.
        NotSupportedError: the model keeps something that the store cannot, or its steps cannot be
            recorded and `cuda_graphs` is True.
        KernelUnavailableError: `backend` is `triton` or `cpu`, which cannot run here, or leaves
            layers out.
        UnsupportedModelError: transformers itself runs the model without a cache only, or peft
            wraps it.
    """

    # What is kept between calls must not depend on the mode of whoever calls first.
    @torch.inference_mode(False)
    def __init__(
        self,
        model: PreTrainedModel,
        cache_bytes: int,
        *,
        backend: Backend = "auto",
        max_batch: int = 256,
        cuda_graphs: bool | None = None,
        eviction: str = "learned",
        prefix_state_dtype: str = LIVE,
    ) -> None:
        if is_of_peft(model):
            raise UnsupportedModelError(
                f"the engine runs plain models, not a {type(model).__name__} of peft; give "
                "model.get_base_model(), on which its adapters act as well"
            )
        self.call = ModelCall(model)
        self.model, self.device = model, self.call.device
        self.config = model.config.get_text_config(decoder=True)
        self.sides = RotarySides(model)
        self.continues_in_pieces = self.call.spec.continues_in_pieces
        backend = decoding_backend(backend, self.device)
        self.coverage = kernel_coverage(model, self.call.spec, backend)
        self._on_cpu = implementation_on(backend, self.device) == "cpu"
        autocast = torch.is_autocast_enabled(self.device.type)
        self._widest = torch.float32 if autocast else model.dtype
        planned = layout_of(model, autocast=autocast)
        layout = planned.layout
        least = len(layout.classes) + layout.state.num_frames
        frames = frames_within(cache_bytes, layout.frame_bytes, least=least)
        pool = FramePool(frames, layout.frame_bytes, device=self.device)
        codes = state_codes(layout, planned.states, prefix_state_dtype)
        self.store = SequenceStore(layout, pool, policy=eviction, codes=codes)
        self.cache = BatchCache(self.config, planned, self.store, self.coverage, backend)
        # The first pass of all may go on from a prefix that was loaded.
        take_over_layers(model, self.cache)
        slots = [x.tokens_per_frame for x in layout.classes if x.kind == TOKENS]
        self.max_tokens = frames * max(slots, default=1)
        positions = getattr(self.config, "max_position_embeddings", None)
        if positions is not None:
            self.max_tokens = min(self.max_tokens, positions)
        self._steps: DecodeSteps | None = None
        if self.coverage.complete and not self.sides.limits:
            self._steps = DecodeSteps(
                self.call, self.cache, max_batch=max_batch, max_tokens=self.max_tokens
            )
        if cuda_graphs is None:
            possible = self._steps is not None and self.device.type == "cuda"
            cuda_graphs = possible and not adapted_modules(model)
        if cuda_graphs:
            adapted = adapted_modules(model)
            if adapted:
                raise NotSupportedError(
                    f"cuda_graphs=True does not go with the adapters of peft on {adapted[0]} and "
                    "others, which are switched without a trace; merge them, or leave it out"
                )
            if self._steps is None or self.device.type != "cuda":
                left = sorted(self.coverage.faults.items()) or "it has unconverted layers"
                raise NotSupportedError(
                    f"cuda_graphs=True needs a model on a CUDA device whose layers all run as "
                    f"kernels; the model is on {self.device}, and torch computes: {left}"
                )
            self._steps.record()
        self.equal_lengths_only = _reads_by_slot(model)

    @torch.inference_mode(False)
    @torch.no_grad()
    def prefill(
        self,
        seq_id: Hashable,
        tokens: Sequence[int],
        *,
        every_token: bool = False,
        side: int = 0,
    ) -> Tensor:
        """Append tokens to one sequence, whose frames have been reserved; logits (V,) after the
        last of them, or (T, V) after each. `side` is that of the whole text, see `RotarySides`."""
        self._check_autocast()
        begin = self.store.num_tokens(seq_id)
        ids = torch.tensor([tokens], device=self.device)
        positions = torch.arange(begin, begin + len(tokens), device=self.device)[None]
        self.cache.begin([seq_id], self._prefill_step(seq_id, begin, len(tokens)))
        with self.sides.reading(side):
            logits = self.call(ids, self.cache, positions, None, every_token=every_token)
        self.cache.finish()
        self.store.commit([seq_id])
        return logits[0]

    @torch.inference_mode(False)
    @torch.no_grad()
    def decode(self, seq_ids: Sequence[Hashable], tokens: Sequence[int]) -> Tensor:
        """Append one token to each of these sequences, whose frames have been reserved; logits
        (B, V)."""
        if self._steps is not None:
            logits_of_all = self._steps(seq_ids, tokens)
            self.store.commit(seq_ids)
            return logits_of_all
        logits = self._feed(seq_ids, [[token] for token in tokens])
        self.store.commit(seq_ids)
        return torch.cat(logits)

    @torch.inference_mode(False)
    @torch.no_grad()
    def verify(self, seq_ids: Sequence[Hashable], tokens: Sequence[Sequence[int]]) -> list[Tensor]:
        """Append a few tokens to each of these sequences, whose frames have been reserved, as if
        one came after the other; logits (T, V) of each sequence after each of its T tokens. How
        many of them stay is left to the caller, who commits them."""
        return self._feed(seq_ids, tokens)

    def _feed(self, seq_ids: Sequence[Hashable], tokens: Sequence[Sequence[int]]) -> list[Tensor]:
        """One pass for all sequences that can be in one; logits (T, V) of each."""
        logits: list[Tensor] = [torch.empty(0)] * len(seq_ids)
        for members in self._groups(seq_ids, tokens):
            ids = torch.tensor([list(tokens[i]) for i in members], device=self.device)
            names, num_new = [seq_ids[i] for i in members], ids.shape[1]
            lengths = torch.tensor(
                [self.store.num_tokens(name) for name in names], device=self.device
            )
            longest = int(lengths.max())
            slots = torch.arange(longest + num_new, device=self.device)
            mask = (slots >= longest - lengths[:, None]).long()
            step = None
            if self.coverage.rows:
                step = self.cache.tables(len(names), num_new, longest + num_new)
                step.fill(self.store, names)
            positions = lengths[:, None] + torch.arange(num_new, device=self.device)
            self.cache.begin(names, step, token_by_token=True)
            found = self.call(ids, self.cache, positions, mask, every_token=True)
            self.cache.finish()
            for i, rows in zip(members, found, strict=True):
                logits[i] = rows
        return logits

    def _check_autocast(self) -> None:
        """Refuse autocast to a type that what is stored would be rounded from."""
        if not torch.is_autocast_enabled(self.device.type):
            return
        dtype = torch.get_autocast_dtype(self.device.type)
        if torch.promote_types(dtype, self._widest) != self._widest:
            raise NotSupportedError(
                f"this engine was made outside of autocast, and stores {self._widest}, the type of "
                f"the weights; autocast to {dtype} is on. Make another one within it"
            )

    def _prefill_step(self, seq_id: Hashable, begin: int, count: int) -> StepTables | None:
        """For layers that kernels read; None where there is no history yet, which nobody reads, and
        on a CPU, whose kernels decode."""
        if not begin or not self.coverage.rows or self._on_cpu:
            return None
        step = self.cache.tables(1, count, begin + count)
        step.fill(self.store, [seq_id])
        return step

    def _groups(
        self, seq_ids: Sequence[Hashable], tokens: Sequence[Sequence[int]]
    ) -> list[list[int]]:
        """Which of them one pass can take."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, seq_id in enumerate(seq_ids):
            length = self.store.num_tokens(seq_id)
            replay_length = self.cache.planned.replay_length
            num_new = len(tokens[i])
            # Many tokens are read by kernels of GPUs for one sequence alone.
            alone = num_new > MAX_DECODE_TOKENS and not self._on_cpu
            # Sequences whose coded states have been rewritten stay apart from those before it.
            key = (
                num_new,
                i if alone else -1,
                length % replay_length,
                length >= replay_length,
                length if self.equal_lengths_only else 0,
                self.sides.side(length + num_new),
            )
            groups.setdefault(key, []).append(i)
        return list(groups.values())


def _reads_by_slot(model: PreTrainedModel) -> bool:
    """Whether keys or angles depend on the slot itself, not on distances between slots, so that a
    batch must have its sequences in the slots of their positions."""
    stored_by_slot = is_converted(model) and any(
        latent.kind.stores_rotated or latent.kind.decouples for latent in plan_of(model).latents
    )
    return stored_by_slot or any(
        module.head.rotary is not None and module.head.rotary.depends_on_length
        for module in model.modules()
        if isinstance(module, LatentAttention)
    )

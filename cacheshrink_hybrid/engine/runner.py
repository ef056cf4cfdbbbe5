"""Runs a model over sequences of a store: prefill in chunks, decoding in batches."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..cache import make_cache
from ..cache.budget import frames_within
from ..cache.frame_pool import FramePool
from ..cache.sequences import SequenceStore
from ..errors import UnsupportedModelError
from ..families import model_spec
from ..latent_model import is_converted, plan_of
from ..modules.latent_attention import LatentAttention
from .batch_cache import BatchCache, stored_shapes


class Runner:
    """A model with a store for its sequences.

    Args:
        model: converted or not, of a supported family.
        cache_bytes: most bytes of the arena.

    Raises:
        CacheFullError: `cache_bytes` do not hold a sequence of one frame.
        NotSupportedError: the model keeps something that the store cannot.
        UnsupportedModelError: transformers itself runs the model without a cache only.
    """

    def __init__(self, model: PreTrainedModel, cache_bytes: int) -> None:
        self.model = model
        self.config = model.config.get_text_config(decoder=True)
        spec = model_spec(self.config)
        self.continues_in_pieces = spec.continues_in_pieces
        self._attends = bool(spec.attention_layers)
        names = inspect.signature(model.forward).parameters
        if not self._attends and "cache_params" not in names:
            raise UnsupportedModelError(
                f"this {type(model).__name__} has recurrent layers alone, and transformers runs "
                "such hybrids without a cache only; use a model type without attention, such as "
                "mamba2"
            )
        self._cache_name = "cache_params" if "cache_params" in names else "past_key_values"
        probe = make_cache(model)
        states = plan_of(model).states if is_converted(model) else ()
        # So many that every ring of inputs has been rewritten into its state once.
        count = 1 + max((state.replay_length for state in states), default=1)
        with torch.no_grad():
            ids = torch.zeros(1, count, dtype=torch.long, device=model.device)
            self._call(ids, probe, torch.arange(count, device=model.device)[None], None)
        shapes = stored_shapes(probe)
        least = len(shapes.layout.classes) + shapes.layout.state.num_frames
        frames = frames_within(cache_bytes, shapes.layout.frame_bytes, least=least)
        pool = FramePool(frames, shapes.layout.frame_bytes, device=model.device)
        self.store = SequenceStore(shapes.layout, pool)
        self.cache = BatchCache(self.config, shapes, self.store)
        self.equal_lengths_only = _reads_by_slot(model)

    @torch.no_grad()
    def prefill(self, seq_id: Hashable, tokens: Sequence[int]) -> Tensor:
        """Append tokens to one sequence, whose frames have been reserved; logits (V,) after the
        last of them."""
        begin = self.store.num_tokens(seq_id)
        ids = torch.tensor([tokens], device=self.model.device)
        positions = torch.arange(begin, begin + len(tokens), device=self.model.device)[None]
        self.cache.begin([seq_id])
        logits = self._call(ids, self.cache, positions, None)
        self.cache.finish()
        self.store.commit([seq_id])
        return logits[0]

    @torch.no_grad()
    def decode(self, seq_ids: Sequence[Hashable], tokens: Sequence[int]) -> Tensor:
        """Append one token to each of these sequences, whose frames have been reserved; logits
        (B, V)."""
        groups = self._groups(seq_ids)
        logits: list[Tensor] = [torch.empty(0)] * len(seq_ids)
        for members in groups:
            ids = torch.tensor([[tokens[i]] for i in members], device=self.model.device)
            names = [seq_ids[i] for i in members]
            lengths = torch.tensor(
                [self.store.num_tokens(name) for name in names], device=self.model.device
            )
            longest = int(lengths.max())
            slots = torch.arange(longest + 1, device=self.model.device)
            mask = (slots >= longest - lengths[:, None]).long()
            self.cache.begin(names)
            found = self._call(ids, self.cache, lengths[:, None], mask)
            self.cache.finish()
            for i, row in zip(members, found, strict=True):
                logits[i] = row
        self.store.commit(seq_ids)
        return torch.stack(logits)

    def _groups(self, seq_ids: Sequence[Hashable]) -> list[list[int]]:
        groups: dict[tuple[int, bool, int], list[int]] = {}
        for i, seq_id in enumerate(seq_ids):
            length = self.store.num_tokens(seq_id)
            replay_length = self.cache.shapes.replay_length
            # Sequences whose coded states have been rewritten stay apart from those before it.
            key = (
                length % replay_length,
                length >= replay_length,
                length if self.equal_lengths_only else 0,
            )
            groups.setdefault(key, []).append(i)
        return list(groups.values())

    def _call(self, ids: Tensor, cache, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Logits (B, V) after the last token."""
        # Without attention nobody sees other slots, and nothing depends on positions.
        seen = {"attention_mask": mask, "position_ids": positions} if self._attends else {}
        output = self.model(
            input_ids=ids,
            use_cache=True,
            logits_to_keep=1,
            **seen,
            **{self._cache_name: cache},
        )
        return output.logits[:, -1]


def _reads_by_slot(model: PreTrainedModel) -> bool:
    """Whether keys or angles depend on the slot itself, not on distances between slots, so that a
    batch must have its sequences in the slots of their positions."""
    stores_rotated = is_converted(model) and any(
        latent.read_mode == "rotate" for latent in plan_of(model).latents
    )
    return stores_rotated or any(
        module.rotary is not None and module.rotary.depends_on_length
        for module in model.modules()
        if isinstance(module, LatentAttention)
    )

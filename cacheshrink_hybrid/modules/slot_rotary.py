"""Rotating rebuilt keys by their slot in the cache, with the model's own rotary embedding.

Keys are stored before rotation, so history has to be rotated when it is read. RoPE scores depend
on differences of positions only; a left pad shifts all positions of a row alike. Rotating keys and
queries by their slot therefore gives the source model's scores, needs no stored positions, and one
table of angles serves every sequence of the batch. `check_positions` and `check_padding` refuse the
inputs for which slots and positions do not run in step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..errors import NotSupportedError

ApplyRotary = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


_PAIR_ANGLES: WeakKeyDictionary[nn.Module, dict[tuple, tuple[Tensor, Tensor]]] = WeakKeyDictionary()


class SlotRotary:
    """Angles of cache slots, and their application to queries or keys.

    Not a module: it refers to the model's rotary embedding and owns no weights.

    Args:
        rotary_emb: the model's rotary embedding, called with (x, position_ids, *extra).
        apply: the model file's `apply_rotary_pos_emb(q, k, cos, sin)`.
        extra: further arguments of `rotary_emb`, such as a layer type.
        position_axes: positions that the embedding takes per token; 1, or 3 for time, height and
            width, which are equal for text.
        depends_on_length: frequencies change with the longest position (dynamic NTK, longrope), so
            angles cannot be kept between calls.
    """

    def __init__(
        self,
        rotary_emb: nn.Module,
        apply: ApplyRotary,
        *,
        extra: tuple = (),
        position_axes: int = 1,
        depends_on_length: bool = False,
    ) -> None:
        self.rotary_emb = rotary_emb
        self.apply = apply
        self.extra = extra
        self.position_axes = position_axes
        self.depends_on_length = depends_on_length
        self._angles: tuple[Tensor, Tensor] | None = None
        self._turns: tuple[Tensor, Tensor] | None = None
        self._halves: bool | None = None
        self._rotated: dict[int, int | None] = {}
        self._step: tuple[tuple, Any] | None = None

    def angles(
        self, num_slots: int, like: Tensor, last: int | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """cos and sin of slots 0 .. num_slots-1, each (1, num_slots, rotary dim), as `like`.

        `last` is the last slot in use, where frequencies depend on the length; None for all.
        """
        if self.depends_on_length or torch.compiler.is_compiling():
            return self._compute(num_slots, like, last)
        kept = self._angles
        if kept is None or kept[0].shape[1] < num_slots or not _matches(kept[0], like):
            # Room for as many again, so that decoding does not recompute at every step.
            kept = self._angles = self._compute(2 * num_slots, like)
        return kept[0][:, :num_slots], kept[1][:, :num_slots]

    def pair_angles(self, num_slots: int, num_pairs: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of each channel pair at slots 0 .. num_slots-1 or more, (slots, pairs) each,
        contiguous; one copy for all layers with this embedding."""
        tables = _PAIR_ANGLES.setdefault(self.rotary_emb, {})
        key = (self.extra, like.dtype, like.device)
        if key not in tables or len(tables[key][0]) < num_slots:
            # A power of two, so that decoding does not copy at every step.
            cos, sin = self._compute(1 << (num_slots - 1).bit_length(), like)
            tables[key] = tuple(angle[0, :, :num_pairs].contiguous() for angle in (cos, sin))
        return tables[key]

    def kept_pair_angles(self) -> object:
        """What `pair_angles` gave out last, by type and device."""
        return dict(_PAIR_ANGLES.get(self.rotary_emb, {}))

    @torch.no_grad()
    def _compute(
        self, num_slots: int, like: Tensor, last: int | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        position_ids = torch.arange(num_slots, device=like.device)[None]
        if self.depends_on_length and last is not None:
            # Empty slots of a static cache do not make the text longer.
            position_ids = position_ids.clamp_max(last)
        if self.position_axes > 1:
            position_ids = position_ids.expand(self.position_axes, 1, -1)
        cos, sin = self.rotary_emb(like, position_ids, *self.extra)
        return cos.to(like), sin.to(like)

    def window_angles(
        self, first_query: int | Tensor, first_key: int, num_keys: int, query: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Angles of new queries and of the keys they read.

        Args:
            first_query: slot of the first new query; a tensor where a static cache counts on the
                device, and always gives out its full length.
            first_key: slot of the first key.
            num_keys: keys, S.
            query: (B, H, T, D).

        Returns:
            (cos, sin) of the T queries and (cos, sin) of the S keys, each (1, n, rotary dim).
        """
        num_new = query.shape[2]
        at_key = slice(first_key, first_key + num_keys)
        step = (first_query, first_key, num_keys, num_new, query.dtype, query.device)
        keeps = isinstance(first_query, int) and not (
            self.depends_on_length or torch.compiler.is_compiling()
        )
        if keeps and self._step is not None and self._step[0] == step:
            return self._step[1]
        if isinstance(first_query, int):
            num_slots = max(first_query + num_new, at_key.stop)
            cos, sin = self.angles(num_slots, query, first_query + num_new - 1)
            at_query: slice | Tensor = slice(first_query, first_query + num_new)
        else:
            last = first_query + num_new - 1
            cos, sin = self.angles(at_key.stop, query, last)
            at_query = torch.arange(num_new, device=query.device) + first_query
        found = (cos[:, at_query], sin[:, at_query]), (cos[:, at_key], sin[:, at_key])
        if keeps:  # the same for the next layer
            self._step = (step, found)
        return found

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate x (B, heads, T, D) by angles (B or 1, T, rotary dim)."""
        # The model's function takes queries and keys together; no heads of either cost nothing.
        return self.apply(x, x[:, :0], cos, sin)[0]

    def turns(self, cos: Tensor, sin: Tensor) -> Tensor:
        """cos + i sin of the first half of the channels, (B or 1, S, D/2), for `turn_pairs_`.

        All layers read the same slots in one step, so the last result is kept with what it is of.
        """
        if self._turns is None or self._turns[0] is not cos:
            half = cos.shape[-1] // 2
            turn = torch.complex(cos[..., :half].contiguous(), sin[..., :half].contiguous())
            self._turns = (cos, turn)
        return self._turns[1]

    def turns_halves(self, x: Tensor, cos: Tensor) -> bool:
        """Whether rotation is the complex multiplication of channel pairs (i, i + D/2), and can be
        done in place: float32, the whole head, no gradients. Found out by trying, once."""
        if torch.compiler.is_compiling() or x.requires_grad:
            return False
        if cos.shape[-1] != x.shape[-1] or x.dtype != torch.float32:
            return False
        if self._halves is None:
            generator = torch.Generator().manual_seed(0)
            probe = torch.randn(1, 1, 3, x.shape[-1], generator=generator)
            angles = torch.randn(1, 3, x.shape[-1] // 2, generator=generator).repeat(1, 1, 2)
            turned = self.apply(probe, probe[:, :0], angles.cos(), angles.sin())[0]
            due = in_pairs(probe).transpose(1, 2).contiguous()
            turn_pairs_(due, self.turns(angles.cos(), angles.sin()))
            self._halves = torch.allclose(in_pairs(turned).transpose(1, 2), due, atol=1e-6)
        return self._halves

    def rotated_halves(self, head_dim: int) -> int | None:
        """Rotated channels Dr of a head, if pairs (i, i + Dr/2) are turned by one angle each and
        the rest stays as it is; None for any other rotation. Found out by trying, once."""
        if head_dim not in self._rotated:
            self._rotated[head_dim] = self._try_halves(head_dim)
        return self._rotated[head_dim]

    def _try_halves(self, head_dim: int) -> int | None:
        generator = torch.Generator().manual_seed(0)
        device = next(self.rotary_emb.buffers()).device
        probe = torch.randn(1, 1, 3, head_dim, generator=generator).to(device)
        given = self._compute(1, probe)[0].shape[-1]
        for width, repeats in ((given, 2), (2 * given, 1)):  # some models give each angle once
            half = width // 2
            angles = torch.randn(1, 3, half, generator=generator).repeat(1, 1, repeats).to(device)
            if width > head_dim or angles.shape[-1] != given:
                continue
            turned = self.rotate(probe, angles.cos(), angles.sin())
            pairs, order = in_pairs(probe[..., :width])[:, 0], torch.arange(half, device=device)
            due = turn_channels(pairs, order, angles.cos(), angles.sin())
            same = torch.allclose(in_pairs(turned[..., :width])[:, 0], due, atol=1e-5)
            if same and torch.equal(turned[..., width:], probe[..., width:]):
                return width
        return None


def turn_channels(latent: Tensor, frequencies: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first channels of latents (B, T, R), which are pairs (real, imaginary).

    Args:
        frequencies: of each pair; -1 for pairs that stay as they are.
        cos, sin: (B or 1, T, rotary dim), of which the first half is one per frequency.
    """
    still = frequencies < 0
    cos = torch.where(still, 1.0, cos[..., frequencies.clamp_min(0)]).to(latent.dtype)
    sin = torch.where(still, 0.0, sin[..., frequencies.clamp_min(0)]).to(latent.dtype)
    real, imaginary = latent[..., : 2 * len(frequencies)].unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([real * cos - imaginary * sin, imaginary * cos + real * sin], dim=-1)
    return torch.cat([turned.flatten(-2), latent[..., 2 * len(frequencies) :]], dim=-1)


def in_pairs(x: Tensor) -> Tensor:
    """Channels (..., D) in the order 0, D/2, 1, D/2 + 1, ..., so that a pair lies side by side."""
    return x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def turn_pairs_(x: Tensor, turn: Tensor) -> None:
    """Rotate x (B, S, heads, D), channels in pairs, in place by turns (B or 1, S, D/2)."""
    torch.view_as_complex(x.unflatten(-1, (-1, 2))).mul_(turn[:, :, None])


def _matches(kept: Tensor, like: Tensor) -> bool:
    return kept.dtype == like.dtype and kept.device == like.device


def check_positions(position_ids: Tensor | None, attention_mask: object, past: int) -> None:
    """Refuse positions that do not advance by one per cache slot.

    Args:
        position_ids: (B, T) or None, positions of the new tokens; with further axes they are not
            looked at.
        attention_mask: (B, past + T), zeros on the left only (`check_padding`); or None; or masks
            in the form that attention functions take, which say nothing of positions.
        past: tokens already in the cache, at least 1.

    Raises:
        NotSupportedError: for packed rows on top of a cache.
    """
    if position_ids is None or position_ids.ndim != 2:
        return
    if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
        valid = attention_mask.bool()
        num_new = position_ids.shape[1]
        visible = valid[:, -num_new:]
        shift = position_ids - (valid.long().cumsum(-1) - 1)[:, -num_new:]
        contiguous = (shift == shift[:, -1:]) | ~visible
    elif attention_mask is None:
        due = torch.arange(past, past + position_ids.shape[1], device=position_ids.device)
        contiguous = position_ids == due
    else:
        contiguous = position_ids.diff(dim=-1) == 1
    if not bool(contiguous.all()):
        raise NotSupportedError(
            "position_ids on top of a cache must continue it one by one; packed sequences need a "
            "cache each, or a forward pass without cache"
        )

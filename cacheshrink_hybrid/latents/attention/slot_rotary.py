"""Rotating rebuilt keys by their slot in the cache, with the model's own rotary embedding.

Keys are stored before rotation, so history has to be rotated when it is read. RoPE scores depend
on differences of positions only; a left pad shifts all positions of a row alike. Rotating keys and
queries by their slot therefore gives the source model's scores, needs no stored positions, and one
table of angles serves every sequence of the batch. `check_positions` and `check_padding` refuse the
inputs for which slots and positions do not run in step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import NotSupportedError
from ...lasting import lasting_tensors
from .rotation import (
    Angles,
    ApplyRotary,
    RotatedPairs,
    as_angles,
    in_halves,
    in_pairs,
    of_length_one,
    turn_pairs_,
    turned_halves,
)

Place = tuple[torch.dtype, torch.device]

Frequencies = list[tuple[Tensor, int]]
"""The buffers of a rotary embedding, each with the number of times that it was written to."""


class SlotRotary:
    """Angles of cache slots, and their application to queries or keys.

    Not a module: it refers to the model's rotary embedding and owns no weights. All layers that are
    rotated alike share one, since they ask for the same angles in one step.

    Args:
        rotary_emb: the model's rotary embedding, called with (x, position_ids, *extra).
        apply: the model file's `apply_rotary_pos_emb(q, k, cos, sin)`.
        extra: further arguments of `rotary_emb`, such as a layer type.
        position_axes: positions that the embedding takes per token; 1, or 3 for time, height and
            width, which are equal for text.
        depends_on_length: frequencies change with the longest position (dynamic NTK, longrope), so
            angles cannot be kept between calls.
        is_own: the model hands out no angles, or others; those of new tokens come from here.
    """

    def __init__(
        self,
        rotary_emb: nn.Module,
        apply: ApplyRotary,
        *,
        extra: tuple = (),
        position_axes: int = 1,
        depends_on_length: bool = False,
        is_own: bool = False,
    ) -> None:
        self.rotary_emb = rotary_emb
        self.apply = apply
        self.extra = extra
        self.position_axes = position_axes
        self.depends_on_length = depends_on_length
        self.is_own = is_own
        # What is kept between calls. Each is looked up once and replaced as a whole, so that
        # threads with other texts may do the same at any time.
        self._angles: dict[Place, Angles] = {}
        self._pair_angles: dict[Place, Angles] = {}
        self._block_angles: dict[tuple[int, torch.device], Angles] = {}
        self._place_angles: dict[tuple[int, Place], Angles] = {}
        self._turns: tuple[tuple[Tensor, Tensor], ...] = ()
        self._halves: bool | None = None
        self._formula: dict[tuple[torch.dtype, torch.dtype], bool] = {}
        self._rotated: dict[int, RotatedPairs | None] = {}
        self._step: tuple[tuple, dict[tuple[int, int], tuple[Angles, Angles]]] | None = None
        self._frequencies: Frequencies = []

    def _forget_other_frequencies(self) -> None:
        """Drop all angles if the embedding's buffers are others than those they were made of: after
        `model.to(dtype)`, say."""
        now = [
            (buffer, 0 if buffer.is_inference() else buffer._version)
            for buffer in self.rotary_emb._buffers.values()
            if buffer is not None
        ]
        known = self._frequencies
        if len(now) != len(known) or any(
            a is not b or m != n for (a, m), (b, n) in zip(now, known, strict=True)
        ):
            self._frequencies = now
            self._angles, self._pair_angles = {}, {}
            self._block_angles, self._place_angles = {}, {}
            self._turns, self._step = (), None

    def given_angles(self, given: Any, position_ids: Tensor | None, like: Tensor) -> Angles | None:
        """cos and sin of new tokens, of what the model hands out with them; None where it hands out
        nothing, so that nothing is rotated.

        Args:
            given: cos and sin, or complex numbers as `as_angles` takes them.
            position_ids: (B, T), for those that are its own.
            like: a tensor of their type.

        Raises:
            NotSupportedError: no positions for its own angles.
        """
        if not self.is_own:
            return None if given is None else as_angles(given, like.dtype)
        if position_ids is None:
            raise NotSupportedError(
                "attention of this family takes its angles from position_ids, and was given none; "
                "call the whole model"
            )
        with torch.no_grad():
            return as_angles(self.rotary_emb(like, position_ids), like.dtype)

    def angles(self, num_slots: int, like: Tensor, last: int | Tensor | None = None) -> Angles:
        """cos and sin of slots 0 .. num_slots-1, each (1, num_slots, rotary dim), as `like`.

        `last` is the last slot in use, where frequencies depend on the length; None for all.
        """
        if self.depends_on_length:
            return self._compute(num_slots, like, last)
        if not torch.compiler.is_compiling():
            self._forget_other_frequencies()
        kept = self._angles.get((like.dtype, like.device))
        if kept is None or kept[0].shape[1] < num_slots:
            if torch.compiler.is_compiling():
                return self._compute(num_slots, like, last)
            # Room for as many again, so that decoding does not recompute at every step.
            kept = self._angles[like.dtype, like.device] = self._compute(2 * num_slots, like)
        return kept[0][:, :num_slots], kept[1][:, :num_slots]

    def pair_angles(self, num_slots: int, num_pairs: int, like: Tensor) -> Angles:
        """cos and sin of each channel pair at slots 0 .. num_slots-1 or more, (slots, pairs) each,
        contiguous."""
        self._forget_other_frequencies()
        kept = self._pair_angles.get((like.dtype, like.device))
        if kept is None or len(kept[0]) < num_slots:
            # A power of two, so that decoding does not copy at every step.
            cos, sin = self._compute(1 << (num_slots - 1).bit_length(), like)
            with lasting_tensors():
                kept = cos[0, :, :num_pairs].contiguous(), sin[0, :, :num_pairs].contiguous()
            self._pair_angles[like.dtype, like.device] = kept
        return kept

    def block_angles(
        self, num_slots: int, num_pairs: int, block_slots: int, like: Tensor
    ) -> Angles:
        """cos and sin of each channel pair that turn a query back to the first slot of a block, as
        long as the model's, for the blocks of slots 0 .. num_slots-1 or more, (blocks, pairs) each,
        float32, contiguous."""
        self._forget_other_frequencies()
        kept = self._block_angles.get((block_slots, like.device))
        if kept is None or len(kept[0]) * block_slots < num_slots:
            # A query may lie many blocks on, so these angles are not rounded to 16 bits.
            exact = like.new_empty(0, dtype=torch.float32)
            cos, sin = self.pair_angles(num_slots, num_pairs, exact)
            with lasting_tensors(), torch.no_grad():
                kept = cos[::block_slots].contiguous(), -sin[::block_slots]
            self._block_angles[block_slots, like.device] = kept
        return kept

    def place_angles(
        self, first: int | Tensor, count: int, block_slots: int, like: Tensor
    ) -> Angles:
        """cos and sin of length one of the places that slots have in their blocks, (B or 1, count,
        rotary dim) each, as `like`.

        Args:
            first: slot of the first; a tensor, () or (B, 1), where it is counted on the device.
        """
        traced = torch.compiler.is_compiling()
        if not traced:
            self._forget_other_frequencies()
        place = block_slots, (like.dtype, like.device)
        kept = self._place_angles.get(place)
        if kept is None:
            with lasting_tensors(), torch.no_grad():
                kept = of_length_one(*self._compute(block_slots, like))
            if not traced:
                self._place_angles[place] = kept
        cos, sin = kept
        if isinstance(first, int) and not traced:
            begin = first % block_slots
            if begin + count <= block_slots:
                return cos[:, begin : begin + count], sin[:, begin : begin + count]
        places = (torch.arange(count, device=like.device) + first) % block_slots
        places = places if places.ndim > 1 else places[None]
        return cos[0, places], sin[0, places]

    def kept_angles(self) -> object:
        """What `angles`, `pair_angles`, `block_angles` and `place_angles` gave out last."""
        kept = self._angles, self._pair_angles, self._block_angles, self._place_angles
        return [dict(angles) for angles in kept]

    def _compute(self, num_slots: int, like: Tensor, last: int | Tensor | None = None) -> Angles:
        """`angles` without looking at what is kept."""
        with lasting_tensors(), torch.no_grad():
            return self._computed(num_slots, like, last)

    def _computed(self, num_slots: int, like: Tensor, last: int | Tensor | None) -> Angles:
        position_ids = torch.arange(num_slots, device=like.device)[None]
        if self.depends_on_length and last is not None:
            # Empty slots of a static cache do not make the text longer.
            position_ids = position_ids.clamp_max(last)
        if self.position_axes > 1:
            position_ids = position_ids.expand(self.position_axes, 1, -1)
        cos, sin = as_angles(self.rotary_emb(like, position_ids, *self.extra), like.dtype)
        return cos.to(like), sin.to(like)

    def window_angles(
        self, first_query: int | Tensor, first_key: int, num_keys: int, query: Tensor
    ) -> tuple[Angles, Angles]:
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
        step, window = (first_query, num_new, query.dtype, query.device), (first_key, num_keys)
        keeps = isinstance(first_query, int) and not (
            self.depends_on_length or torch.compiler.is_compiling()
        )
        if keeps:
            self._forget_other_frequencies()
        kept = self._step if keeps else None
        known = kept[1] if kept is not None and kept[0] == step else {}
        if window in known:
            return known[window]
        if isinstance(first_query, int):
            num_slots = max(first_query + num_new, at_key.stop)
            cos, sin = self.angles(num_slots, query, first_query + num_new - 1)
            at_query: slice | Tensor = slice(first_query, first_query + num_new)
        else:
            last = first_query + num_new - 1 if self.depends_on_length else None
            cos, sin = self.angles(at_key.stop, query, last)
            at_query = torch.arange(num_new, device=query.device) + first_query
        of_keys = cos, sin
        if at_key != slice(0, cos.shape[1]):
            of_keys = cos[:, at_key], sin[:, at_key]
        found = (cos[:, at_query], sin[:, at_query]), of_keys
        if keeps:  # the same for other layers, of which some may have another window
            self._step = (step, {**known, window: found})
        return found

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate x (B, heads, T, D) by angles (B or 1, T, rotary dim)."""
        if self._is_formula(x, cos):
            return turned_halves(x, cos, sin)
        # The model's function takes queries and keys together; here there are no keys.
        return self.apply(x, x[:, :0], cos, sin)[0]

    def _is_formula(self, x: Tensor, cos: Tensor) -> bool:
        """Whether the model's function is `turned_halves` to the bit. Within a graph a function
        that was not tried is taken as it is."""
        if cos.shape[-1] != x.shape[-1]:
            return False
        known = self._formula.get((x.dtype, cos.dtype))
        if known is None and not torch.compiler.is_compiling():
            known = self.try_formula(x.shape[-1], x.dtype, cos.dtype)
        return bool(known)

    def try_formula(self, width: int, dtype: torch.dtype, of_angles: torch.dtype) -> bool:
        """Find out, once, whether the model's function is `turned_halves` for these dtypes."""
        cpu, generator = torch.device("cpu"), torch.Generator().manual_seed(0)
        probe = torch.randn(1, 2, 3, width, generator=generator, device=cpu).to(dtype)
        angles = torch.randn(1, 3, width // 2, generator=generator, device=cpu).repeat(1, 1, 2)
        cos, sin = angles.cos().to(of_angles), angles.sin().to(of_angles)
        due = turned_halves(probe, cos, sin)
        try:
            turned = self.apply(probe, probe[:, :0], cos, sin)[0]
            known = turned.dtype == due.dtype and torch.equal(turned, due)
        except RuntimeError:  # it takes angles of another width
            known = False
        self._formula[dtype, of_angles] = known
        return known

    def turns(self, cos: Tensor, sin: Tensor) -> Tensor:
        """cos + i sin of the first half of the channels, (B or 1, S, 1, D/2), for `turn_pairs_`.

        Layers read the same slots in one step, or those of two windows, so the last results are
        kept with what they are of.
        """
        kept = self._turns
        for of, turn in kept:
            if of is cos:
                return turn
        half = cos.shape[-1] // 2
        with lasting_tensors():
            turn = torch.complex(cos[..., :half].contiguous(), sin[..., :half].contiguous())
            turn = turn[:, :, None]
        self._turns = (*kept[-1:], (cos, turn))
        return turn

    def turns_halves(self, x: Tensor, cos: Tensor) -> bool:
        """Whether rotation is the complex multiplication of channel pairs (i, i + D/2), and can be
        done in place: float32, the whole head, no gradients. Found out by trying, once."""
        if torch.compiler.is_compiling() or x.requires_grad:
            return False
        if cos.shape[-1] != x.shape[-1] or x.dtype != torch.float32:
            return False
        known = self._halves
        if known is None:
            generator = torch.Generator().manual_seed(0)
            probe = torch.randn(1, 1, 3, x.shape[-1], generator=generator)
            angles = torch.randn(1, 3, x.shape[-1] // 2, generator=generator).repeat(1, 1, 2)
            turned = self.apply(probe, probe[:, :0], angles.cos(), angles.sin())[0]
            due = in_pairs(probe).transpose(1, 2).contiguous()
            turn_pairs_(due, self.turns(angles.cos(), angles.sin()))
            known = torch.allclose(in_pairs(turned).transpose(1, 2), due, atol=1e-6)
            self._halves = known
        return known

    def rotated_halves(self, head_dim: int) -> int | None:
        """Rotated channels Dr of a head, if pairs (i, i + Dr/2) are turned by one angle each and
        the rest stays as it is; None for any other rotation."""
        pairs = self.rotated_pairs(head_dim)
        if pairs is None or pairs.neighbours or pairs.angle_step > 1:
            return None
        return pairs.width

    def rotated_pairs(self, head_dim: int) -> RotatedPairs | None:
        """Which channels of a head turn together by one angle each, while the rest stays as it is;
        None for any other rotation. Found out by trying, once."""
        if head_dim not in self._rotated:
            self._rotated[head_dim] = self._try_pairs(head_dim)
        return self._rotated[head_dim]

    def _try_pairs(self, head_dim: int) -> RotatedPairs | None:
        generator = torch.Generator().manual_seed(0)
        buffer = next(self.rotary_emb.buffers(), None)
        device = torch.device("cpu") if buffer is None else buffer.device
        probe = torch.randn(1, 1, 3, head_dim, generator=generator).to(device)
        cos, sin = self._compute(3, probe)
        given = cos.shape[-1]
        # Models that give each angle twice do so side by side or half the width apart.
        twice = bool((cos[..., ::2] == cos[..., 1::2]).all()) if given % 2 == 0 else False
        twice = twice and bool((sin[..., ::2] == sin[..., 1::2]).all())
        places = [(given // 2, 2), (given // 2, 1)] if twice else [(given // 2, 1)]
        for num_pairs, step in [*places, (given, 1)]:
            width = 2 * num_pairs
            if not num_pairs or width > head_dim or given not in (num_pairs, width):
                continue
            angles = torch.randn(1, 3, num_pairs, generator=generator).to(device)
            asked = angles
            if given == width:
                asked = in_pairs(angles.repeat(1, 1, 2)) if step == 2 else angles.repeat(1, 1, 2)
            turned = self.rotate(probe, asked.cos(), asked.sin())
            if not torch.equal(turned[..., width:], probe[..., width:]):
                continue
            cos, sin = (one.repeat(1, 1, 2) for one in (angles.cos(), angles.sin()))
            head = probe[..., :width]
            for neighbours in (False, True):
                due = turned_halves(in_halves(head) if neighbours else head, cos, sin)
                due = in_pairs(due) if neighbours else due
                if torch.allclose(turned[..., :width], due, atol=1e-5):
                    return RotatedPairs(width=width, neighbours=neighbours, angle_step=step)
        return None


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

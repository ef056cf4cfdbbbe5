"""What kernels have to know of a head to read its rows in the pool, and what keeps them from it.

Slots are positions: slot 0 is a sequence's first token, so queries are rotated by theirs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...codecs.row_layout import Kind, RowLayout
from ...errors import KernelUnavailableError
from ...kernels.latents.decode import BlockUp, KeyUp, LatentRead
from ..plan import LatentPlan
from .head import LatentHead

COMPUTED = (torch.float32, torch.float16, torch.bfloat16)


def row_layout(head: LatentHead, dtype: torch.dtype) -> RowLayout:
    """The layout of a head's rows, worked out once.

    Args:
        dtype: of latents that are stored as they are.

    Raises:
        KernelUnavailableError: latents that are stored in float64.
    """
    return head.noted(("row_layout", dtype), lambda: _layout(head, dtype))


def _layout(head: LatentHead, dtype: torch.dtype) -> RowLayout:
    return head.codec.layout if head.codec is not None else plan_layout(head.plan, dtype)


def plan_layout(plan: LatentPlan, dtype: torch.dtype) -> RowLayout:
    """The layout of rows as a plan asks for them; arguments as of `row_layout`."""
    if plan.coded:
        return plan.codec().layout
    kind = Kind.of(dtype)
    if kind is None:
        raise KernelUnavailableError(
            f"kernels do not read latents stored as {dtype}; run the model in float32, "
            "bfloat16 or float16, or convert with coded latents"
        )
    return RowLayout.of_runs([(run.channels, kind) for run in plan.runs])


def why_not(head: LatentHead, like: Tensor) -> str | None:
    """What keeps kernels from reading a head's rows; None if nothing does.

    Args:
        like: a tensor of the activations' type and device.
    """
    unlike = head.unlike_matrices(like)
    if unlike is not None:
        return f"its {unlike} is not one linear map for all tokens"
    return head.noted(("why_not", like.dtype), lambda: _fault(head, like))


def _fault(head: LatentHead, like: Tensor) -> str | None:
    if like.dtype not in COMPUTED:
        return f"it computes in {like.dtype}, and kernels in float32, float16 or bfloat16"
    if head.rotary is not None and head.rotary.depends_on_length:
        return "its angles depend on the length of the text"
    try:
        row_layout(head, like.dtype)
        latent_read(head, 1, like)
    except KernelUnavailableError as fault:
        return str(fault)
    return None


def latent_read(head: LatentHead, num_slots: int, like: Tensor) -> LatentRead:
    """What `latent_decode` has to know of a head, with its weights as they are now.

    Args:
        num_slots: slots for which angles are needed.
        like: a tensor of the queries' type and device.

    Raises:
        KernelUnavailableError: values that are keys as well, biased scores, decoupled keys, norms
            of keys other than the RMS norm of a head's channels before their rotation, rotations
            other than of channel pairs (i, i + rotary dim / 2), sliding windows that exact tokens
            cover, and latents without a channel of keys or of values.
    """
    plan, window = head.plan, head.window
    if head.expansion is not None:
        raise KernelUnavailableError(
            "it caches latents of its own, whose values are keys as well, which torch reads and "
            "kernels do not yet"
        )
    if head.in_chunks:
        raise KernelUnavailableError(
            "its queries see chunks of the text, which torch reads and kernels do not yet"
        )
    if head.biased:
        raise KernelUnavailableError(
            "its scores have a bias by distance, which torch adds and kernels do not yet"
        )
    if head.decouples:
        raise KernelUnavailableError(
            "its rotary key is one for all heads, which torch reads and kernels do not yet"
        )
    if not (plan.key_rank and plan.value_rank):
        raise KernelUnavailableError(
            f"kernels read channels of keys and of values; this layer has key_rank={plan.key_rank} "
            f"and value_rank={plan.value_rank}, so torch reads its rows"
        )
    if window is not None:
        # Coded rows end where the exact window begins, and the queries are moved there.
        if plan.exact_window >= window:
            raise KernelUnavailableError(
                f"its exact_window of {plan.exact_window} tokens covers its sliding window of "
                f"{window}, so that no coded rows are read"
            )
        window -= plan.exact_window
    return LatentRead(
        key_rank=plan.key_rank,
        value_rank=plan.value_rank,
        scale=head.scale,
        window=window,
        softcap=head.softcap,
        key_up=_key_up(head, num_slots, like) if head.rebuilds_keys else None,
        block_up=_block_up(head, num_slots, like) if head.stores_rotated else None,
    )


def _key_up(head: LatentHead, num_slots: int, like: Tensor) -> KeyUp:
    norm_weight, epsilon = None, 0.0
    if head.norms_follow_rotation:
        raise KernelUnavailableError(
            "kernels normalise keys before they rotate them; this model does so afterwards"
        )
    if head.key_norm is not None:
        norm_weight, epsilon = rms_gains(head, like.device)
    weight, bias = head.key_up.matrix(like)
    cos = sin = None
    if head.rotary is not None:
        cos, sin = head.rotary.pair_angles(num_slots, num_pairs(head), like)
    return KeyUp(
        weight=weight.detach().contiguous(),
        bias=bias.detach().view(weight.shape[:2]),
        cos=cos,
        sin=sin,
        norm_weight=norm_weight,
        norm_epsilon=epsilon,
        per_head=head.key_up.shares is not None,
    )


def _block_up(head: LatentHead, num_slots: int, like: Tensor) -> BlockUp:
    assert head.rotary is not None
    cos, sin = head.rotary.block_angles(num_slots, num_pairs(head), head.plan.block_slots, like)
    weight, _ = head.key_up.matrix(like)
    return BlockUp(
        weight=weight.detach().contiguous(),
        mean=head.mean_in_block(like)[0].detach().contiguous(),
        cos=cos,
        sin=sin,
    )


def num_pairs(head: LatentHead) -> int:
    """Rotated pairs of a head's channels.

    Raises:
        KernelUnavailableError: if they are not pairs (i, i + rotary dim / 2).
    """
    assert head.rotary is not None
    channels = head.rotary.rotated_halves(head.head_dim)
    if channels is None:
        raise KernelUnavailableError(
            "kernels rotate channel pairs (i, i + rotary dim / 2); this model rotates otherwise, "
            "so its keys are rebuilt by the module"
        )
    return channels // 2


@torch.no_grad()
def rms_gains(head: LatentHead, device: torch.device) -> tuple[Tensor, float]:
    """Gains (D,), float32, and epsilon of a norm of keys, with its weight as it is now.

    Raises:
        KernelUnavailableError: any other norm than that of the mean square over a head's channels.
    """
    norm: Any = head.key_norm
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if epsilon is not None and not head.norm_spans_heads:
        plain = not (norm._forward_hooks or norm._forward_pre_hooks or "forward" in vars(norm))
        if plain:
            offset = head.noted(
                "gain offset", lambda: _gain_offset(norm, epsilon, head.head_dim, device)
            )
            if offset is not None:
                return norm.weight.float() + offset, float(epsilon)
        gains = _tried_gains(norm, epsilon, head.head_dim, device)
        if gains is not None:
            return gains, float(epsilon)
    raise KernelUnavailableError(
        f"kernels normalise keys by the mean square of a head's channels; this model's "
        f"{type(norm).__name__} does otherwise"
    )


def _gain_offset(norm: Any, epsilon: float, width: int, device: torch.device) -> float | None:
    """What the gains of a norm are above its weight, 0 or 1; None if they are something else."""
    gains = _tried_gains(norm, epsilon, width, device)
    if gains is None:
        return None
    offsets = (0.0, 1.0)
    return next((o for o in offsets if torch.allclose(gains, norm.weight.float() + o, 1e-5)), None)


def _tried_gains(norm: Any, epsilon: float, width: int, device: torch.device) -> Tensor | None:
    """Gains (D,) of a norm if it divides by the root of the mean square; None if it does
    otherwise."""
    probe = torch.linspace(-1, 2, width, device=device)[None]
    gains = norm(torch.ones_like(probe))[0].float() * (1 + epsilon) ** 0.5
    due = probe * torch.rsqrt(probe.square().mean() + epsilon) * gains
    return gains if torch.allclose(norm(probe).float(), due, rtol=1e-2, atol=1e-2) else None


def kept_tensors(head: LatentHead) -> object:
    """What reading by kernels keeps between steps for a head, for those who have to keep it alive:
    a recorded graph knows its addresses only."""
    return head, None if head.rotary is None else head.rotary.kept_angles()

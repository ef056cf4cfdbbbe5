"""Decoding of a latent attention module from rows in the pool, by the kernels.

What `read_latents` does with decoded latents, `decode_from_pool` does with their bytes: queries are
absorbed where the plan says so, `latent_decode` reads the rows, and the mixed latents become heads'
outputs. Slots are positions: slot 0 is a sequence's first token, so queries are rotated by theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...codecs.row_layout import Kind, RowLayout
from ...errors import KernelUnavailableError
from ...kernels.backend import Backend
from ...kernels.latents.append import latent_append
from ...kernels.latents.decode import KeyUp, LatentRead, latent_decode
from ...kernels.latents.paged_rows import PagedRows
from ...kernels.latents.prefill import latent_prefill
from ...pool.layout import LifetimeClass
from .maps import key_map, value_map

if TYPE_CHECKING:
    from .module import LatentAttention


def row_layout(module: LatentAttention, dtype: torch.dtype) -> RowLayout:
    """The layout of a module's rows.

    Args:
        dtype: of latents that are stored as they are.

    Raises:
        KernelUnavailableError: latents that are stored in float64, or with a scale per token.
    """
    if module.codec is not None:
        if module.codec.token_scales:
            raise KernelUnavailableError(
                "kernels read rows with static scales, not scales='token'; convert with static "
                "scales, or read through the codec"
            )
        return module.codec.layout
    kind = Kind.of(dtype)
    if kind is None:
        raise KernelUnavailableError(
            f"kernels do not read latents stored as {dtype}; run the model in float32, "
            "bfloat16 or float16, or convert with coded latents"
        )
    return RowLayout.of_runs([(run.channels, kind) for run in module.plan.runs])


_GAIN_OFFSETS: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
"""Of RMS norms that were tried: what their gains are above their weight, 0 or 1."""


def rows_in_pool(
    layout: RowLayout, arena: Tensor, frame_bytes: int, lifetime: LifetimeClass, place: int
) -> PagedRows:
    """The rows of a layer.

    Args:
        layout: of a row, from `row_layout`.
        arena, frame_bytes: of the pool.
        lifetime: class of layers that this one belongs to.
        place: of the layer in its class.
    """
    return PagedRows(
        arena=arena,
        layout=layout,
        frame_bytes=frame_bytes,
        frame_tokens=lifetime.tokens_per_frame,
        layer_offset=lifetime.offsets[place],
    )


def latent_read(module: LatentAttention, num_slots: int, like: Tensor) -> LatentRead:
    """What `latent_decode` has to know of a module, with its weights as they are now.

    Args:
        num_slots: slots for which angles are needed.
        like: a tensor of the queries' type and device.

    Raises:
        KernelUnavailableError: norms of keys other than the RMS norm of a head's channels,
            rotations other than of channel pairs (i, i + rotary dim / 2), and sliding windows that
            exact copies cover.
    """
    plan = module.plan
    window = module.sliding_window
    if window is not None and plan.exact_window:
        # The window of rows begins where that of copies ends, and the queries are moved there.
        window -= plan.exact_window
        if window < 1:
            raise KernelUnavailableError(
                f"its exact_window of {plan.exact_window} tokens covers its sliding window of "
                f"{module.sliding_window}, so that no rows are read"
            )
    key_up = None
    if plan.read_mode == "reconstruct":
        D = module.head_dim
        norm_weight, epsilon = None, 0.0
        if module.k_norm is not None:
            norm_weight, epsilon = rms_gains(module, like.device)
        weight, bias = key_map(module, like)
        cos = sin = None
        if module.rotary is not None:
            channels = module.rotary.rotated_halves(D)
            if channels is None:
                raise KernelUnavailableError(
                    "kernels rotate channel pairs (i, i + rotary dim / 2); this model rotates "
                    "otherwise, so its keys are rebuilt by the module"
                )
            cos, sin = module.rotary.pair_angles(num_slots, channels // 2, like)
        key_up = KeyUp(
            weight=weight.detach().contiguous(),
            bias=bias.detach(),
            cos=cos,
            sin=sin,
            norm_weight=norm_weight,
            norm_epsilon=epsilon,
            per_head=plan.method == "per_head",
        )
    return LatentRead(
        key_rank=plan.key_rank,
        value_rank=plan.value_rank,
        scale=module.scaling,
        window=window,
        softcap=module.softcap,
        sinks=module.sinks,
        key_up=key_up,
    )


@torch.no_grad()
def rms_gains(module: LatentAttention, device: torch.device) -> tuple[Tensor, float]:
    """Gains (D,), float32, and epsilon of a norm of keys, with its weight as it is now.

    Raises:
        KernelUnavailableError: any other norm than that of the mean square over a head's channels.
    """
    norm: Any = module.k_norm
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if epsilon is not None and not module.norm_spans_heads:
        changed = norm._forward_hooks or norm._forward_pre_hooks or "forward" in vars(norm)
        if norm in _GAIN_OFFSETS and not changed:
            return norm.weight.float() + _GAIN_OFFSETS[norm], float(epsilon)
        probe = torch.linspace(-1, 2, module.head_dim, device=device)[None]
        gains = norm(torch.ones_like(probe))[0].float() * (1 + epsilon) ** 0.5
        due = probe * torch.rsqrt(probe.square().mean() + epsilon) * gains
        if torch.allclose(norm(probe).float(), due, rtol=1e-2, atol=1e-2):
            for offset in (0.0, 1.0):
                if not changed and torch.allclose(gains, norm.weight.float() + offset, rtol=1e-5):
                    _GAIN_OFFSETS[norm] = offset
            return gains, float(epsilon)
    raise KernelUnavailableError(
        f"kernels normalise keys by the mean square of a head's channels; this model's "
        f"{type(norm).__name__} does otherwise"
    )


def append_to_pool(
    module: LatentAttention,
    latent: Tensor,
    rows: PagedRows,
    slot_mapping: Tensor,
    *,
    backend: Backend = "auto",
) -> None:
    """Code latents (N, R) and write them to their slots (N,), see `latent_append`."""
    reach = module.latent_reach if rows.layout.head_byte is not None else None
    latent_append(latent, rows, slot_mapping, reach=reach, backend=backend)


def decode_from_pool(
    module: LatentAttention,
    query: Tensor,
    rows: PagedRows,
    frame_table: Tensor,
    context_lens: Tensor,
    *,
    read: LatentRead,
    first_slots: Tensor | None = None,
    beside: tuple[Tensor, Tensor] | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Heads' outputs (B, T, H*D) of few rotated queries (B, H, T, D); see `latent_decode`.

    Args:
        read: from `latent_read`, made once per module.
    """
    asked, offset = _absorbed(module, query, read)
    mixed, total = latent_decode(
        asked,
        rows,
        frame_table,
        context_lens,
        read=read,
        offset=offset,
        first_slots=first_slots,
        beside=beside,
        backend=backend,
    )
    return _heads(module, mixed, total)


def prefill_from_pool(
    module: LatentAttention,
    query: Tensor,
    rows: PagedRows,
    frame_table: Tensor,
    context_lens: Tensor,
    *,
    read: LatentRead,
    first_slots: Tensor | None = None,
    beside: tuple[Tensor, Tensor] | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """`decode_from_pool` for many queries; see `latent_prefill`."""
    asked, offset = _absorbed(module, query, read)
    mixed, total = latent_prefill(
        asked,
        rows,
        frame_table,
        context_lens,
        torch.full_like(context_lens, query.shape[2]),
        read=read,
        offset=offset,
        first_slots=first_slots,
        beside=beside,
        backend=backend,
    )
    return _heads(module, mixed, total)


def _absorbed(
    module: LatentAttention, query: Tensor, read: LatentRead
) -> tuple[Tensor, Tensor | None]:
    """Queries (B, T, H, K) as the kernels take them, and what the mean of the keys adds to their
    scores, (B, T, H); None where keys are rebuilt."""
    B, H, T, D = query.shape
    J = module.num_key_value_heads
    if read.key_up is not None:
        return query.transpose(1, 2).contiguous(), None
    grouped = query.reshape(B, J, -1, D)
    weight, bias = key_map(module, query)
    absorbed = torch.matmul(grouped, weight)
    offset = torch.matmul(grouped, bias[:, :, None])
    asked = absorbed.reshape(B, H, T, -1).transpose(1, 2).contiguous()
    return asked, offset.reshape(B, H, T).transpose(1, 2)


def _heads(module: LatentAttention, mixed: Tensor, total: Tensor) -> Tensor:
    """Heads' outputs (B, T, H*D) of mixed latents (B, T, H, Rv) and sums of probabilities."""
    B, T, H, rank = mixed.shape
    J, D = module.num_key_value_heads, module.head_dim
    grouped = mixed.transpose(1, 2).reshape(B, J, -1, rank)
    weight, bias = value_map(module, mixed)
    heads = torch.matmul(grouped, weight.transpose(1, 2))
    # With sinks the probabilities do not add up to one, so the mean counts by their sum.
    share = total.transpose(1, 2).reshape(B, J, -1, 1).to(heads.dtype)
    heads = heads + share * bias[:, None]
    return heads.view(B, H, T, D).transpose(1, 2).reshape(B, T, H * D)

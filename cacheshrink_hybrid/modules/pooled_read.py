"""Decoding of a latent attention module from rows in the pool, by the kernels.

What `read_latents` does with decoded latents, `decode_from_pool` does with their bytes: queries are
absorbed where the plan says so, `latent_decode` reads the rows, and the mixed latents become heads'
outputs. Slots are positions: slot 0 is a sequence's first token, so queries are rotated by theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..cache.layout import LifetimeClass
from ..cache.state_map import StateMap
from ..codecs import RowCodec
from ..codecs.levels import lloyd_max_levels
from ..errors import NotSupportedError
from ..kernels.backend import Backend
from ..kernels.latent_append import latent_append
from ..kernels.latent_decode import KeyUp, LatentRead, latent_decode
from ..kernels.paged_rows import PagedRows
from ..kernels.row_layout import KIND_OF_BITS, KIND_OF_DTYPE, Kind, RowLayout, row_levels
from ..kernels.state_pages import StatePlace

if TYPE_CHECKING:
    from .latent_attention import LatentAttention

BYTE_KINDS = {"uniform": Kind.UNIFORM8, "e4m3": Kind.E4M3, "e5m2": Kind.E5M2}
HALF_KINDS = {"float16": Kind.FLOAT16, "bfloat16": Kind.BFLOAT16}


def layout_of_codec(codec: RowCodec) -> RowLayout:
    """The layout of a codec's rows as kernels take it.

    Raises:
        NotSupportedError: rows with a scale per token, which kernels do not read.
    """
    row_format = codec.format
    if row_format.scales != "static":
        raise NotSupportedError(
            f"kernels read rows with static scales, not scales={row_format.scales!r}; convert "
            "with static scales, or read through the codec"
        )
    kinds = {**KIND_OF_BITS, 16: HALF_KINDS[row_format.half], 8: BYTE_KINDS[row_format.byte]}
    runs = [(run.channels, kinds[run.bits]) for run in codec.runs]
    layout = RowLayout.of_runs(runs, alignment=row_format.alignment)
    assert (layout.row_bytes, layout.head_byte) == (codec.row_bytes, codec.head_byte)
    return layout


def rows_in_pool(
    module: LatentAttention,
    arena: Tensor,
    frame_bytes: int,
    lifetime: LifetimeClass,
    place: int,
    dtype: torch.dtype,
) -> PagedRows:
    """The rows of a module's layer.

    Args:
        arena, frame_bytes: of the pool.
        lifetime: class of layers that this one belongs to.
        place: of the layer in its class.
        dtype: of latents that are stored as they are.

    Raises:
        NotSupportedError: latents that are stored in float32, or with a scale per token.
    """
    if module.codec is not None:
        layout = layout_of_codec(module.codec)
    elif dtype in KIND_OF_DTYPE:
        layout = RowLayout.uniform(module.plan.kv_lora_rank, dtype)
    else:
        raise NotSupportedError(
            f"kernels do not read latents stored as {dtype}; run the model in bfloat16 or "
            "float16, or convert with coded latents"
        )
    levels = None
    if layout.uses_tables:
        levels = row_levels(lloyd_max_levels(4), lloyd_max_levels(2)).to(arena.device)
    return PagedRows(
        arena=arena,
        layout=layout,
        levels=levels,
        frame_bytes=frame_bytes,
        frame_tokens=lifetime.tokens_per_frame,
        layer_offset=lifetime.offsets[place],
    )


def place_in_state(state: StateMap, number: int, frame_bytes: int) -> StatePlace:
    """Where state tensor `number` of a layout lies, as kernels take it.

    Raises:
        NotSupportedError: rows that are no multiple of 16 bytes and leave gaps at frame ends.
    """
    rows, first = state.rows[number], state.slices[number][0]
    if rows.row_bytes % 16 == 0:
        return StatePlace(
            row_bytes=rows.row_bytes,
            first_frame=first.frame,
            first_offset=first.offset,
            first_rows=first.num_rows,
        )
    if frame_bytes % rows.row_bytes or first.offset % rows.row_bytes:
        raise NotSupportedError(
            f"rows of {rows.row_bytes} bytes leave gaps in frames of {frame_bytes} bytes, which "
            "kernels do not skip; use rows of a multiple of 16 bytes"
        )
    return StatePlace.packed(frame_bytes, first_byte=first.frame * frame_bytes + first.offset)


def latent_read(module: LatentAttention, angles: tuple[Tensor, Tensor] | None) -> LatentRead:
    """What `latent_decode` has to know of a module.

    Args:
        angles: cos and sin by slot, (1, slots, rotary dim), where keys are rotated when read.

    Raises:
        NotSupportedError: keys that are normalised after they are rebuilt, rotations other than
            of channel pairs (i, i + rotary dim / 2), and exact copies of tokens.
    """
    plan = module.plan
    if plan.keeps_exact:
        raise NotSupportedError("kernels do not read exact_sinks and exact_window; use the module")
    key_up = None
    if plan.read_mode == "reconstruct":
        if module.k_norm is not None:
            raise NotSupportedError("kernels do not normalise rebuilt keys; use the module")
        J, D = module.num_key_value_heads, module.head_dim
        cos = sin = None
        if angles is not None:
            half = _rotated_pairs(module, angles[0])
            cos, sin = (angle[0, :, :half].contiguous() for angle in angles)
        key_up = KeyUp(
            weight=module.k_b_proj.weight.view(J, D, -1),
            bias=module.k_b_proj.bias.view(J, D),
            cos=cos,
            sin=sin,
            per_head=plan.method == "per_head",
        )
    return LatentRead(
        key_rank=plan.key_rank,
        value_rank=plan.value_rank,
        scale=module.scaling,
        window=module.sliding_window,
        softcap=module.softcap,
        sinks=module.sinks,
        key_up=key_up,
    )


def _rotated_pairs(module: LatentAttention, cos: Tensor) -> int:
    """Number of channel pairs (i, i + pairs) that a model rotates; found out by trying.

    Models give angles once per pair, or twice, for both channels.
    """
    assert module.rotary is not None
    new = {"device": cos.device, "dtype": torch.float32}
    probe = torch.linspace(-1, 1, module.head_dim, **new).view(1, 1, 1, -1)
    width = cos.shape[-1]
    for pairs, copies in ((width // 2, 2), (width, 1)):
        if pairs * copies != width or 2 * pairs > module.head_dim:
            continue
        turn = torch.arange(1, 1 + pairs, **new) / pairs
        first, second, rest = probe.split([pairs, pairs, module.head_dim - 2 * pairs], dim=-1)
        c, s = turn.cos(), turn.sin()
        due = torch.cat([first * c - second * s, second * c + first * s, rest], dim=-1)
        given = turn.repeat(copies)[None, None]
        try:
            turned = module.rotary.rotate(probe, given.cos(), given.sin())
        except RuntimeError:  # angles of the other width
            continue
        if turned.shape == due.shape and torch.allclose(turned, due, atol=1e-5):
            return pairs
    raise NotSupportedError(
        "kernels rotate channel pairs (i, i + rotary dim / 2); this model rotates otherwise, so "
        "its keys are rebuilt by the module"
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
    backend: Backend = "auto",
) -> Tensor:
    """Heads' outputs (B, T, H*D) of rotated queries (B, H, T, D); see `latent_decode`.

    Args:
        read: from `latent_read`, made once per module.
    """
    B, H, T, D = query.shape
    J = module.num_key_value_heads
    asked, offset = query.transpose(1, 2), None
    if read.key_up is None:
        grouped = query.reshape(B, J, -1, D)
        absorbed = torch.matmul(grouped, module.k_b_proj.weight.view(J, D, -1))
        asked = absorbed.reshape(B, H, T, -1).transpose(1, 2)
        offset = torch.matmul(grouped, module.k_b_proj.bias.view(J, D, 1))
        offset = offset.reshape(B, H, T).transpose(1, 2)
    mixed, total = latent_decode(
        asked.contiguous(),
        rows,
        frame_table,
        context_lens,
        read=read,
        offset=offset,
        backend=backend,
    )
    mixed = mixed.transpose(1, 2).reshape(B, J, -1, read.value_rank)
    heads = torch.matmul(mixed, module.v_b_proj.weight.view(J, D, -1).transpose(1, 2))
    # With sinks the probabilities do not add up to one, so the mean counts by their sum.
    share = total.transpose(1, 2).reshape(B, J, -1, 1).to(heads.dtype)
    heads = heads + share * module.v_b_proj.bias.view(J, 1, D)
    return heads.view(B, H, T, D).transpose(1, 2).reshape(B, T, H * D)

"""What is planned for one attention module, as plain data: its latents, their cost and speed."""

from __future__ import annotations

from dataclasses import replace

from ..config import CompressionConfig
from ..device_profile import DeviceProfile
from ..latents.attention.native_parts import NativeParts
from ..latents.attention.parts import AttentionParts
from ..latents.fit.bits import CodedFactors
from ..latents.fit.choice import Choice
from ..latents.fit.read_time import Reading
from ..latents.fit.rotate import BLOCK_SLOTS
from ..latents.plan import ChannelRun, LatentPlan
from ..methods import LATENT_KINDS
from .exact_counts import ExactCounts


def latent_plan(
    part: AttentionParts,
    result: CodedFactors,
    exact: ExactCounts,
    config: CompressionConfig,
    profile: DeviceProfile,
    choice: Choice | None,
) -> LatentPlan:
    """The plan of one attention module.

    Args:
        result: what is put into it.
        exact: first and last tokens that stay exact.
        profile: of the device that is to read its latents.
        choice: what its kind was chosen from; None where speed was not weighed.
    """
    factors, runs = result.factors, result.runs
    kind = LATENT_KINDS[factors.method]
    read_mode = kind.read_mode or part.read_mode
    key_rank, value_rank = factors.key_rank, factors.value_up.shape[1]
    plan = LatentPlan(
        layer_ids=part.layer_ids,
        method=factors.method,
        kv_lora_rank=factors.encoder.shape[0],
        key_rank=key_rank,
        value_rank=value_rank,
        read_mode=read_mode,
        runs=tuple(ChannelRun(channels=channels, bits=bits) for channels, bits in runs),
        row_format=result.row_format if config.coded else None,
        block_slots=BLOCK_SLOTS if kind.stores_rotated else 0,
        rotary_frequencies=factors.rotary_frequencies,
        exact_sinks=exact.sinks,
        exact_window=exact.window,
        exact_channels=part.width if any(exact) else 0,
        head_groups=factors.num_groups,
        basis_group=factors.basis_group,
        predicted_loss=factors.loss * len(part.layer_ids),
        expected_error=factors.expected_error,
        error_bound=factors.error_bound,
        relative_error=factors.relative_error,
    )
    reading = Reading(
        method=factors.method,
        read_mode=read_mode,
        num_heads=part.num_attention_heads,
        kv_width=part.key_width,
        head_dim=part.head_dim,
        key_rank=key_rank,
        value_rank=value_rank,
        row_bytes=plan.bytes_per_token,
        scores_values=isinstance(part, NativeParts),
    )
    plan = replace(plan, read_ns=1e9 * reading.seconds(profile) * (1 + len(part.readers)))
    if choice is None or part.rotary is None:
        return plan
    joint_ns = 1e9 * choice.joint.seconds / len(part.layer_ids)
    return replace(plan, joint_loss=choice.joint.loss, joint_read_ns=joint_ns)

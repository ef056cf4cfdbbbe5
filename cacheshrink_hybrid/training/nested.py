"""Nested ranks: one trained model that can be cut to several cache sizes.

Channels are sorted by what they are worth, so the first share of them is a model of its own, the
better if training has seen it (`TrainingConfig.nested_ranks`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import ConfigError
from ..families.encoder_decoder import ONE_TEXT, refuse_encoder
from ..headwise_linear import HeadwiseLinear, by_head, in_runs
from ..latents.attention.module import LatentAttention
from ..latents.plan import ChannelRun, LatentPlan
from ..model.adapters import refuse_adapters
from ..model.attached_plan import PLAN_ATTRIBUTE, plan_of, refuse_head_groups
from .targets import latent_layers

CODED_STEP = 8
"""Coded channels are cut in steps that fill whole bytes at any width."""
Shared = dict[int, tuple[nn.Parameter, nn.Parameter]]
"""Old and new parameters by the id of the old one."""


def kept_channels(channels: int, share: float, coded: bool) -> int:
    """Channels that a share of a basis with `channels` means: at least one, or one step."""
    step = CODED_STEP if coded else 1
    return min(channels, max(step, step * round(channels * share / step)))


@torch.no_grad()
def cut_ranks(model: PreTrainedModel, share: float) -> PreTrainedModel:
    """Keep the first share of every latent's channels, of keys and of values each; in place.

    The plan's bytes and ranks become those of the cut model; its predicted losses and read times
    remain those of the whole one. It has no certificate.

    Args:
        model: a converted model.
        share: above 0, up to 1.

    Raises:
        ConfigError: another share.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share={share!r} must be above 0 and at most 1")
    refuse_adapters(model, "cutting ranks")
    refuse_head_groups(model, "cutting ranks")
    refuse_encoder(model.config, "cutting ranks", ONE_TEXT)
    plan = plan_of(model)
    shared: Shared = {}
    plans: dict[tuple[int, ...], LatentPlan] = {}
    for module in latent_layers(model).values():
        ids = module.plan.layer_ids
        if ids not in plans:
            keys, values = _channels(module, share)
            plans[ids] = _cut_plan(module.plan, keys, values)
            _cut_weights(module, plans[ids], shared)
    for module in latent_layers(model).values():  # all places of shared modules
        module.plan = plans[module.plan.layer_ids]
    latents = tuple(plans[latent.layer_ids] for latent in plan.latents)
    setattr(model, PLAN_ATTRIBUTE, replace(plan, latents=latents, certificate=None))
    return model


def _channels(module: LatentAttention, share: float) -> tuple[int, int]:
    """Channels kept for keys and for values; equal in a joint latent."""
    plan = module.plan
    values = kept_channels(plan.value_rank, share, plan.coded)
    if plan.kind.joint:
        return values, values
    heads = module.head.num_key_value_heads if plan.kind.per_head else 1
    return heads * kept_channels(plan.key_rank // heads, share, plan.coded), values


def _cut_plan(plan: LatentPlan, keys: int, values: int) -> LatentPlan:
    if plan.kind.joint:
        runs = _first(plan.runs, 0, keys)
        rank = keys
    else:
        runs = _first(plan.runs, 0, keys) + _first(plan.runs, plan.key_rank, values)
        rank = keys + values
    return replace(plan, kv_lora_rank=rank, key_rank=keys, value_rank=values, runs=tuple(runs))


def _first(runs: Sequence[ChannelRun], start: int, count: int) -> list[ChannelRun]:
    """The parts of runs that hold the channels [start, start + count)."""
    found, first = [], 0
    for run in runs:
        inside = min(first + run.channels, start + count) - max(first, start)
        if inside > 0:
            found.append(ChannelRun(channels=inside, bits=run.bits))
        first += run.channels
    return found


def _cut_weights(
    module: LatentAttention,
    cut_plan: LatentPlan,
    shared: dict[int, tuple[nn.Parameter, nn.Parameter]],
) -> None:
    whole, keys, values = module.plan, cut_plan.key_rank, cut_plan.value_rank
    channels = torch.arange(whole.kv_lora_rank, device=module.kv_a_proj.weight.device)
    rows, kept_keys = channels[:keys], keys
    if isinstance(module.k_b_proj, HeadwiseLinear):
        heads = module.head.num_key_value_heads
        own = by_head(channels[: whole.key_rank], heads, module.k_b_proj.shares)
        module.k_b_proj.shares = cut_plan.key_shares(heads)
        kept_keys = keys // heads
        rows = in_runs(own[:, :kept_keys], module.k_b_proj.shares)
    if not whole.kind.joint:
        rows = torch.cat([rows, channels[whole.key_rank :][:values]])

    def cut(weight: nn.Parameter, pick: Callable[[Tensor], Tensor]) -> nn.Parameter:
        """The same new parameter for all modules that share the old one."""
        if id(weight) not in shared:
            new = nn.Parameter(pick(weight).contiguous(), requires_grad=weight.requires_grad)
            shared[id(weight)] = weight, new  # the old one too, so that no other gets its id
        return shared[id(weight)][1]

    encoder = module.kv_a_proj
    encoder.weight = cut(encoder.weight, lambda w: w[rows])
    if encoder.bias is not None:
        encoder.bias = cut(encoder.bias, lambda b: b[rows])
    encoder.out_features = len(rows)
    for adapter in (module.kv_a_adapters or {}).values():
        adapter[1].weight = cut(adapter[1].weight, lambda w: w[rows])
        adapter[1].out_features = len(rows)
    module.k_b_proj.weight = cut(module.k_b_proj.weight, lambda w: w[..., :kept_keys])
    module.v_b_proj.weight = cut(module.v_b_proj.weight, lambda w: w[..., :values])
    module.k_b_proj.in_features, module.v_b_proj.in_features = keys, values
    if module.latent_costs is not None:
        module.latent_costs = cut(module.latent_costs, lambda r: r[rows])

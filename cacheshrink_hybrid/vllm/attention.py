"""Attention over latents as a module of vLLM, whose heads are split over processes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear

from ..latents.attention.module import LatentAttention
from ..latents.attention.slot_rotary import SlotRotary
from ..latents.attention.split_heads import split_query
from .own_heads import Share, SplitHead
from .paged_attention import NewTokens
from .rows_layer import LatentRows


class LatentSelfAttention(nn.Module):
    """One layer's attention, with the parameters of a `LatentAttention` under the same names.

    Queries, output, and the maps from latents to keys and values are split by heads; so are rows
    where groups of heads have channels of their own. What makes latents is in every process.

    Args:
        source: the module with parameters that lie nowhere; those of its children that are not
            split become parameters of this one.
        rotary: its rotation, with angles on this device.
        layer: its number.
        prefix: name of the layer in vLLM.
    """

    def __init__(
        self, source: LatentAttention, rotary: SlotRotary | None, layer: int, prefix: str
    ) -> None:
        super().__init__()
        head = source.head
        query, output = source.q_proj, source.o_proj
        self.q_proj = ColumnParallelLinear(
            query.in_features,
            query.out_features,
            bias=query.bias is not None,
            prefix=f"{prefix}.q_proj",
        )
        self.kv_a_proj: Any = _placed(source.kv_a_proj)
        self.kv_mean = _placed_parameter(source.kv_mean)
        self.latent_costs = _placed_parameter(source.latent_costs)
        self.share = Share(get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size())
        # Latents of rotated keys are made of all of them, other keys and values are in exact rows.
        self.kv_proj: Any = (
            _placed(source.kv_proj)
            if head.stores_rotated
            else self.share.own_keys_values(source.kv_proj)
        )
        self.k_b_proj = self.share.own_keys(source.k_b_proj, head.plan)
        self.v_b_proj = self.share.own_values(source.v_b_proj, head.plan)
        self.q_norm = _placed(source.q_norm)
        self.k_norm = _placed(source.k_norm)
        self.o_proj = RowParallelLinear(
            output.in_features,
            output.out_features,
            bias=output.bias is not None,
            prefix=f"{prefix}.o_proj",
        )
        whole = replace(
            head,
            encoder=self.kv_a_proj if head.stores_rotated else None,
            mean=self.kv_mean,
            costs=self.latent_costs,
            rotary=rotary,
        )
        own = self.share.reader(head, self.k_b_proj, self.v_b_proj)
        self.head = replace(own, key_norm=self.k_norm, rotary=rotary)
        heads = SplitHead(whole, self.head, self.share)
        self.rows = LatentRows(layer, heads, self.v_b_proj.weight)

    def forward(self, positions: Tensor, hidden_states: Tensor) -> Tensor:
        """Outputs (N, E) of new tokens (N, E) at positions (N,)."""
        q, _ = self.q_proj(hidden_states)
        head = self.head
        query, _ = split_query(
            q[None], head.head_dim, self.q_norm, head.norm_spans_heads, gated=False
        )
        source = None if self.kv_proj is None else self.kv_proj(hidden_states)
        new = NewTokens(
            query=query[0].transpose(0, 1),
            latent=None if head.stores_rotated else self.kv_a_proj(hidden_states),
            key_value=source if head.stores_rotated else None,
            exact=self._exact(source) if head.plan.keeps_exact else None,
            positions=positions,
        )
        output, _ = self.o_proj(self.rows.attend(new))
        return output

    def _exact(self, source: Tensor) -> Tensor:
        """[k; v] (N, 2*J*D) of this process's heads, of what `kv_proj` gives."""
        if not self.head.stores_rotated:
            return source
        return self.share.key_value(source)


def _placed(module: nn.Module | None) -> nn.Module | None:
    """A module whose parameters lie nowhere, with room for them on the device of new tensors."""
    return None if module is None else module.to_empty(device=torch.get_default_device())


def _placed_parameter(parameter: nn.Parameter | None) -> nn.Parameter | None:
    if parameter is None:
        return None
    room = torch.empty_like(parameter, device=torch.get_default_device())
    return nn.Parameter(room, requires_grad=False)

"""Attention over latents as a module of vLLM: heads are split over processes, latents are not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear

from ..latents.attention.head import LatentHead
from ..latents.attention.module import LatentAttention
from ..latents.attention.slot_rotary import SlotRotary
from ..latents.attention.split_heads import split_query
from .paged_attention import NewTokens
from .rows_layer import LatentRows


class LatentSelfAttention(nn.Module):
    """One layer's attention, with the parameters of a `LatentAttention` under the same names.

    Queries, output, and the maps from latents to keys and values are split by heads; what makes
    latents is in every process, and so are the rows.

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
        self.kv_proj: Any = _placed(source.kv_proj)
        self.kv_mean = _placed_parameter(source.kv_mean)
        self.latent_costs = _placed_parameter(source.latent_costs)
        self.k_b_proj = _own_heads(source.k_b_proj)
        self.v_b_proj = _own_heads(source.v_b_proj)
        self.q_norm = _placed(source.q_norm)
        self.k_norm = _placed(source.k_norm)
        self.o_proj = RowParallelLinear(
            output.in_features,
            output.out_features,
            bias=output.bias is not None,
            prefix=f"{prefix}.o_proj",
        )
        writer = replace(
            head,
            encoder=self.kv_a_proj if head.stores_rotated else None,
            mean=self.kv_mean,
            costs=self.latent_costs,
            rotary=rotary,
        )
        self.head = _reader(self, head, rotary)
        self.rows = LatentRows(layer, writer, self.head, self.v_b_proj.weight)

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
            exact=_own_source(source, head) if head.plan.keeps_exact else None,
            positions=positions,
        )
        output, _ = self.o_proj(self.rows.attend(new))
        return output


def _own_source(source: Tensor, reader: LatentHead) -> Tensor:
    """[k; v] (N, 2*J*D) of the heads of this process, of those of all heads."""
    heads = source.unflatten(-1, (2, -1, reader.head_dim))
    first = get_tensor_model_parallel_rank() * reader.num_key_value_heads
    return heads[:, :, first : first + reader.num_key_value_heads].flatten(1)


def _reader(module: LatentSelfAttention, head: LatentHead, rotary: SlotRotary | None) -> LatentHead:
    """The heads of this process."""
    ranks = get_tensor_model_parallel_world_size()
    key_heads = head.num_key_value_heads // ranks
    plan = replace(head.plan, exact_channels=head.plan.exact_channels // ranks)
    return replace(
        head,
        plan=plan,
        exact_codec=plan.exact_codec() if plan.keeps_exact else None,
        num_attention_heads=head.num_attention_heads // ranks,
        num_key_value_heads=key_heads,
        key_up=replace(head.key_up, projection=module.k_b_proj, num_heads=key_heads),
        value_up=replace(head.value_up, projection=module.v_b_proj, num_heads=key_heads),
        encoder=None,
        mean=None,
        costs=None,
        key_norm=module.k_norm,
        rotary=rotary,
    )


def _placed(module: nn.Module | None) -> nn.Module | None:
    """A module whose parameters lie nowhere, with room for them on the device of new tensors."""
    return None if module is None else module.to_empty(device=torch.get_default_device())


def _placed_parameter(parameter: nn.Parameter | None) -> nn.Parameter | None:
    if parameter is None:
        return None
    room = torch.empty_like(parameter, device=torch.get_default_device())
    return nn.Parameter(room, requires_grad=False)


def _own_heads(projection: nn.Module) -> nn.Module:
    """The part of a map to all heads' keys or values that gives those of this process."""
    ranks = get_tensor_model_parallel_world_size()
    if ranks == 1:
        return _placed(projection)
    assert isinstance(projection, nn.Linear)
    own = skip_init(
        nn.Linear,
        projection.in_features,
        projection.out_features // ranks,
        device=torch.get_default_device(),
        dtype=projection.weight.dtype,
    )
    for parameter in own.parameters():
        parameter.weight_loader = _load_own_rows
    return own


def _load_own_rows(parameter: nn.Parameter, loaded: Tensor) -> None:
    """Take this process's rows, one process's behind the other's, out of all of them."""
    ranks, rank = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()
    parameter.data.copy_(loaded.chunk(ranks)[rank])

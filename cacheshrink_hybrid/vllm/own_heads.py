"""What one of vLLM's processes holds of a layer, where heads are split over several: its heads, and
their channels of rows where groups of heads have channels of their own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ..errors import CheckpointError
from ..headwise_linear import HeadwiseLinear
from ..kernels.backend import Backend
from ..kernels.latents.paged_rows import PagedRows
from ..kernels.latents.row_parts import RowPart, append_part
from ..latents.attention.head import LatentHead
from ..latents.attention.kernel_view import row_layout
from ..latents.attention.key_projection import key_shares
from ..latents.attention.pool_read import append_to_pool
from ..latents.plan import LatentPlan


@dataclass(frozen=True, slots=True)
class Share:
    """Process `number` of `count` that heads are split over."""

    number: int
    count: int

    def splits(self, plan: LatentPlan) -> bool:
        """Whether processes hold parts of rows, and not whole ones."""
        return self.count > 1 and plan.splits_rows(self.count)

    def channels(self, plan: LatentPlan) -> list[int]:
        """Those of a layer's channels that the process holds."""
        if not self.splits(plan):
            return list(range(plan.kv_lora_rank))
        return plan.part_channels(self.number, self.count)

    def key_value(self, source: Tensor, dim: int = -1) -> Tensor:
        """[k; v] of the process's heads, of those of all heads, which lie along `dim`."""
        dim %= source.ndim
        heads = source.unflatten(dim, (2, self.count, -1))
        return heads.select(dim + 1, self.number).flatten(dim, dim + 1)

    def reader(self, head: LatentHead, k_b_proj: nn.Module, v_b_proj: nn.Module) -> LatentHead:
        """The process's heads of a layer, as readers see them.

        Args:
            head: all heads.
            k_b_proj, v_b_proj: `own_keys` and `own_values` of its projections.
        """
        plan, key_heads = head.plan.part(self.count), head.num_key_value_heads // self.count
        key_up, value_up = (
            replace(up, projection=projection, num_heads=key_heads, num_channels=channels)
            for up, projection, channels in (
                (head.key_up, k_b_proj, plan.key_rank),
                (head.value_up, v_b_proj, plan.value_rank),
            )
        )
        return replace(
            head,
            plan=plan,
            codec=plan.codec() if plan.coded else None,
            exact_codec=plan.exact_codec() if plan.keeps_exact else None,
            num_attention_heads=head.num_attention_heads // self.count,
            num_key_value_heads=key_heads,
            key_up=replace(key_up, shares=key_shares(plan, key_heads)),
            value_up=value_up,
            encoder=None,
            mean=None,
            costs=None,
        )

    def own_keys_values(self, projection: nn.Linear | None) -> nn.Module | None:
        """The part of a layer's `kv_proj` that gives [k; v] of the process's heads, without weights
        yet; None for None."""
        if projection is None:
            return None
        own = skip_init(
            nn.Linear,
            projection.in_features,
            projection.out_features // self.count,
            bias=projection.bias is not None,
            device=torch.get_default_device(),
            dtype=projection.weight.dtype,
        )

        def load(parameter: nn.Parameter, loaded: Tensor) -> None:
            parameter.data.copy_(self.key_value(loaded, dim=0))

        for parameter in own.parameters():
            parameter.weight_loader = load
        return own

    def own_keys(self, projection: nn.Module, plan: LatentPlan) -> nn.Module:
        """The part of a layer's `k_b_proj` that gives the process's keys, without weights yet."""
        channels = [channel for channel in self.channels(plan) if channel < plan.key_rank]
        return self._own(projection, channels, plan)

    def own_values(self, projection: nn.Module, plan: LatentPlan) -> nn.Module:
        """The part of a layer's `v_b_proj` that gives the process's values, without weights yet."""
        first = plan.kv_lora_rank - plan.value_rank
        channels = [channel - first for channel in self.channels(plan) if channel >= first]
        return self._own(projection, channels, plan)

    def _own(self, projection: Any, channels: list[int], plan: LatentPlan) -> nn.Module:
        weight = projection.weight
        new = {"device": torch.get_default_device(), "dtype": weight.dtype}
        is_own = torch.ones(weight.shape[-1], dtype=torch.bool, device="cpu")
        if isinstance(projection, HeadwiseLinear):
            shape = weight.shape[0] // self.count, weight.shape[1], projection.shares
            own: nn.Module = HeadwiseLinear(*shape, **new)
        else:
            outputs = weight.shape[0] // self.count
            own = skip_init(nn.Linear, len(channels), outputs, **new)
            is_own[:] = False
            is_own[channels] = True

        def load(parameter: nn.Parameter, loaded: Tensor) -> None:
            """Take the process's rows, one process's behind the other's, and its columns."""
            rows = loaded.chunk(self.count)[self.number]
            if loaded.ndim > 1:
                kept = is_own.to(loaded.device)
                if rows[..., ~kept].any():
                    raise CheckpointError(
                        f"layer {plan.layer_ids[0]} makes keys or values from channels of other "
                        f"heads, though head_groups={plan.head_groups} keeps these apart; convert "
                        "the model again, or leave tensor_parallel_size at 1"
                    )
                rows = rows[..., kept]
            parameter.data.copy_(rows)

        for parameter in own.parameters():
            parameter.requires_grad_(False)
            parameter.weight_loader = load
        return own


@dataclass(frozen=True, eq=False, slots=True)
class SplitHead:
    """A layer whose heads are split over processes.

    Attributes:
        whole: all heads, of which rows are made.
        own: the heads of one process, whose queries read.
        share: which process, of how many.
    """

    whole: LatentHead
    own: LatentHead
    share: Share = Share(0, 1)

    @classmethod
    def alone(cls, head: LatentHead) -> SplitHead:
        """Of one process, which has all heads."""
        return cls(head, head)

    def own_channels(self, latent: Tensor) -> Tensor:
        """Those of latents (..., R) that the process holds."""
        return latent[..., self.share.channels(self.whole.plan)]

    def append(
        self, latent: Tensor, rows: PagedRows, slot_mapping: Tensor, backend: Backend
    ) -> None:
        """Code latents (N, R), and write what the process holds of their rows to slots (N,)."""
        if not self.share.splits(self.whole.plan):
            append_to_pool(self.whole, latent, rows, slot_mapping, backend=backend)
            return
        part = RowPart(self.share.number, self.share.count, row_layout(self.whole, latent.dtype))
        costs = self.whole.costs if rows.layout.gain_byte is not None else None
        append_part(latent, part, rows, slot_mapping, costs=costs, backend=backend)

"""Low-rank additions to the projections of a module that several layers share."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import skip_init

from ..plan import LatentPlan
from .parts import AttentionParts


def low_rank_additions(
    parts: AttentionParts, plan: LatentPlan, new: dict
) -> tuple[nn.ModuleDict | None, nn.ModuleDict | None, nn.ModuleDict | None]:
    """Low-rank additions of shared modules: the queries' own, those of K and V seen through the
    encoder, (E -> 2 * adapter rank -> R), and those of K and V themselves, (... -> 2*J*D), each
    where there is such a projection of the input."""
    if not parts.adapters:
        return None, None, None
    query = nn.ModuleDict()
    latent = None if plan.kind.stores_rotated else nn.ModuleDict()
    both = nn.ModuleDict() if plan.keeps_exact or plan.kind.stores_rotated else None
    for layer_idx, (q, k, v) in parts.adapters.items():
        query[str(layer_idx)] = q
        rank = k[0].out_features + v[0].out_features
        for adapters, width in ((latent, plan.kv_lora_rank), (both, parts.width)):
            if adapters is not None:
                adapters[str(layer_idx)] = nn.Sequential(
                    skip_init(nn.Linear, k[0].in_features, rank, bias=False, **new),
                    skip_init(nn.Linear, rank, width, bias=False, **new),
                )
    return query, latent, both

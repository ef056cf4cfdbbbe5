"""The bases of a converted model under training: one Stiefel factor per independent basis.

joint       one factor for [k; v] of a module
separate    one for keys, one for values; xkv the same, shared by the modules of a group
per_head    one for each head's keys, one for values
rotate      values only: the keys' basis must commute with the rotation, so it stays as it is

While training, forward passes read U from the factors; everything else (evaluation, saving) reads
the ordinary weights of `k_b_proj` and `v_b_proj`, which are brought up to date first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..modules.latent_attention import LatentAttention
from .nested import kept_channels
from .stiefel_basis import StiefelBasis, metric_roots

KEYS, VALUES = "k_b_proj", "v_b_proj"


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one basis that are the weight of a projection.

    Attributes:
        projections: modules with this weight; several where a group shares it.
        first_row: of the basis, in the projection's rows.
    """

    projections: tuple[nn.Module, ...]
    first_row: int

    def of(self, up: Tensor) -> Tensor:
        weight = self.projections[0]._parameters["weight"]
        assert weight is not None
        if up.ndim == 3:
            return up
        return up[self.first_row : self.first_row + weight.shape[0]]


def latent_modules(model: nn.Module) -> dict[str, LatentAttention]:
    """Latent attention modules by name, each once, in layer order.

    Raises:
        UnsupportedModelError: if there is none.
    """
    found: dict[str, LatentAttention] = {}
    seen: set[tuple[int, ...]] = set()
    for name, module in model.named_modules():
        if isinstance(module, LatentAttention) and module.plan.layer_ids not in seen:
            seen.add(module.plan.layer_ids)  # the places of a shared module are aliases of one
            found[name] = module
    if not found:
        raise UnsupportedModelError(
            "the model has no latent attention to train; convert it first (convert_to_mla)"
        )
    return found


class TrainableBases(nn.Module):
    """All bases of a model as `StiefelBasis`, named after the module that owns them.

    Args:
        modules: from `latent_modules`.
        metrics: of each module's [k; v], (2*J*D, 2*J*D), by the same names.
        damping: share of its largest eigenvalue added to each metric's diagonal.
        constrained: False for plain matrices without the manifold.

    Attributes:
        kept_share: share of each basis's channels that training passes read, the first ones.
    """

    def __init__(
        self,
        modules: dict[str, LatentAttention],
        metrics: dict[str, Tensor],
        *,
        damping: float,
        constrained: bool = True,
    ) -> None:
        super().__init__()
        self.bases = nn.ModuleDict()
        self._pieces: dict[str, list[Piece]] = {}
        self._coded: dict[str, bool] = {}
        for names in _sharing(modules):
            group = [modules[name] for name in names]
            metric = sum((metrics[name] for name in names), torch.zeros(())) / len(names)
            assert isinstance(metric, Tensor)
            for suffix, up, part, pieces in _independent(group):
                blocks = _blocks(metric, part, up)
                roots = [metric_roots(block, damping) for block in blocks]
                root, inverse = (torch.stack([pair[i] for pair in roots]) for i in (0, 1))
                if up.ndim == 2:
                    root, inverse = root[0], inverse[0]
                dtype = torch.float64 if up.dtype == torch.float64 else torch.float32
                key = f"{names[0]}.{suffix}".replace(".", "/")
                self.bases[key] = StiefelBasis(
                    up, root, inverse, dtype=dtype, constrained=constrained
                )
                self._pieces[key] = pieces
                self._coded[key] = group[0].plan.coded
        self.kept_share = 1.0
        self._written = {key: basis.factor._version for key, basis in self.bases.items()}

    @torch.no_grad()
    def write_back(self) -> None:
        """Bring the ordinary weights up to date where their factors have moved, and let forward
        passes read them."""
        for key, basis in self.bases.items():
            moved = self._written[key] != basis.factor._version
            self._written[key] = basis.factor._version
            up = basis.up() if moved else None
            for piece in self._pieces[key]:
                if up is not None:
                    piece.projections[0]._parameters["weight"].copy_(piece.of(up))
                for projection in piece.projections:
                    projection.__dict__.pop("weight", None)

    def shadow(self) -> None:
        """Let forward passes read U from the factors, so that gradients reach them."""
        for key, basis in self.bases.items():
            up = basis.up()
            if self.kept_share < 1:
                up = self._first_channels(up, self._coded[key])
            for piece in self._pieces[key]:
                weight = piece.of(up)
                for projection in piece.projections:
                    # An attribute of the instance is found before its parameter of that name.
                    projection.__dict__["weight"] = weight

    def _first_channels(self, up: Tensor, coded: bool) -> Tensor:
        kept = kept_channels(up.shape[-1], self.kept_share, coded)
        mask = torch.arange(up.shape[-1], device=up.device) < kept
        return up * mask.to(up.dtype)

    def orthonormality_error(self) -> float | None:
        """Largest error of all bases, None if they are not constrained."""
        errors = [basis.orthonormality_error() for basis in self.bases.values()]
        return max((error for error in errors if error is not None), default=None)


def _sharing(modules: dict[str, LatentAttention]) -> list[list[str]]:
    """Names of the modules, those that share their bases together."""
    groups: dict[tuple, list[str]] = {}
    for name, module in modules.items():
        group = module.plan.basis_group
        groups.setdefault((name,) if group is None else (group,), []).append(name)
    return list(groups.values())


def _independent(group: list[LatentAttention]):
    """(name, U, its part of [k; v], pieces) of each independent basis of modules that share it."""
    first = group[0]
    width = first.num_key_value_heads * first.head_dim
    keys = tuple(module.k_b_proj for module in group)
    values = tuple(module.v_b_proj for module in group)
    k, v = keys[0].weight, values[0].weight
    whole, key_half, value_half = slice(0, 2 * width), slice(0, width), slice(width, 2 * width)
    method = first.plan.method
    if method == "joint":
        yield "kv", torch.cat([k, v]), whole, [Piece(keys, 0), Piece(values, width)]
        return
    if method != "rotate":
        yield "k", k, key_half, [Piece(keys, 0)]
    yield "v", v, value_half, [Piece(values, 0)]


def _blocks(metric: Tensor, part: slice, up: Tensor) -> list[Tensor]:
    """The metric of a part of [k; v], or of each head's keys where U is (J, D, r)."""
    own = metric[part, part]
    if up.ndim == 2:
        return [own]
    D = up.shape[1]
    return [own[j * D : (j + 1) * D, j * D : (j + 1) * D] for j in range(up.shape[0])]

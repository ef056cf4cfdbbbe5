"""The bases of a converted model under training: one Stiefel factor per independent basis.

joint       one factor for [k; v] of a module
separate    one for keys, one for values; xkv the same, shared by the modules of a group
rotate      as these two: a basis of keys is one of rotated keys, and so are gradients
per_head    one for each head's keys, one for values
decoupled   one for keys that do not rotate and values, one for the rotary key, in plain length
states      of Gated DeltaNet, one for each key head's keys, in plain length: |k| <= 1 must hold

While training, forward passes read U from the factors; everything else (evaluation, saving) reads
the ordinary weights (`k_b_proj`, `v_b_proj`, `state_write`), which are brought up to date first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..latents.attention.module import LatentAttention
from ..states.mixers.mixer import RecurrentMixer
from .nested import kept_channels
from .stiefel_basis import StiefelBasis, metric_roots


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one basis that are a weight, or columns of one.

    Attributes:
        modules: with this weight; several where a group shares it.
        name: of the weight in them.
        first_row: of the weight, in the basis's rows.
        first_column: of the weight that is the basis's; as many as it has follow.
    """

    modules: tuple[nn.Module, ...]
    name: str = "weight"
    first_row: int = 0
    first_column: int = 0

    @property
    def weight(self) -> nn.Parameter:
        weight = self.modules[0]._parameters[self.name]
        assert weight is not None
        return weight

    def of(self, up: Tensor) -> Tensor:
        if up.ndim == 3:
            return up
        return up[self.first_row : self.first_row + self.weight.shape[0]]


def latent_modules(model: nn.Module) -> dict[str, LatentAttention]:
    """Latent attention modules by name, each once, in layer order.

    Raises:
        UnsupportedModelError: if there is none, and no narrower recurrent state either.
    """
    found: dict[str, LatentAttention] = {}
    seen: set[tuple[int, ...]] = set()
    for name, module in model.named_modules():
        if isinstance(module, LatentAttention) and module.plan.layer_ids not in seen:
            seen.add(module.plan.layer_ids)  # the places of a shared module are aliases of one
            found[name] = module
    if not found and not state_mixers(model):
        raise UnsupportedModelError(
            "the model has no latent attention to train; convert it first (convert_to_mla)"
        )
    return found


def state_mixers(model: nn.Module) -> dict[str, RecurrentMixer]:
    """Mixers whose recurrent state is narrower than the source's, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, RecurrentMixer) and module.state_read is not None
    }


class TrainableBases(nn.Module):
    """All bases of a model as `StiefelBasis`, named after the module that owns them.

    Args:
        modules: from `latent_modules`.
        metrics: of each module's [k; v], (2*J*D, 2*J*D), by the same names.
        mixers: from `state_mixers`.
        damping: share of its largest eigenvalue added to each metric's diagonal.
        constrained: False for plain matrices without the manifold.

    Attributes:
        kept_share: share of each basis's channels that training passes read, the first ones.
    """

    def __init__(
        self,
        modules: dict[str, LatentAttention],
        metrics: dict[str, Tensor],
        mixers: dict[str, RecurrentMixer] | None = None,
        *,
        damping: float,
        constrained: bool = True,
    ) -> None:
        super().__init__()
        self.bases = nn.ModuleDict()
        self._pieces: dict[str, list[Piece]] = {}
        self._coded: dict[str, bool] = {}
        self._written: dict[str, Tensor] = {}  # values of the factors that the weights are of
        for names in _sharing(modules):
            group = [modules[name] for name in names]
            metric = sum((metrics[name] for name in names), torch.zeros(())) / len(names)
            assert isinstance(metric, Tensor)
            for suffix, up, part, pieces in _independent(group):
                roots = [metric_roots(block, damping) for block in _blocks(metric, part, up)]
                root, inverse = (torch.stack([pair[i] for pair in roots]) for i in (0, 1))
                if up.ndim == 2:
                    root, inverse = root[0], inverse[0]
                self._add(f"{names[0]}.{suffix}", up, root, inverse, pieces, constrained)
                if part is not None:
                    self._coded[_key(f"{names[0]}.{suffix}")] = group[0].plan.coded
        for name, mixer in (mixers or {}).items():
            narrowing = mixer.state_plan and mixer.state_plan.narrowing
            if narrowing and narrowing.constrained:
                assert mixer.state_write is not None
                plain = torch.eye(mixer.state_write.shape[1], dtype=torch.float64)
                pieces = [Piece((mixer,), "state_write")]
                self._add(f"{name}.state", mixer.state_write, plain, plain, pieces, constrained)
        self.kept_share = 1.0

    def _add(
        self,
        name: str,
        up: Tensor,
        root: Tensor,
        inverse: Tensor,
        pieces: list[Piece],
        constrained: bool,
    ) -> None:
        dtype = torch.float64 if up.dtype == torch.float64 else torch.float32
        basis = StiefelBasis(up, root, inverse, dtype=dtype, constrained=constrained)
        self._written[_key(name)] = basis.factor.detach().clone()
        self.bases[_key(name)] = basis
        self._pieces[_key(name)] = pieces

    @torch.no_grad()
    def write_back(self) -> None:
        """Bring the ordinary weights up to date where their factors have moved, and let forward
        passes read them."""
        # Optimisers may write to a factor behind its version, so the values are compared.
        factors = {key: basis.factor.detach() for key, basis in self.bases.items()}
        written = {key: self._written[key].to(factor) for key, factor in factors.items()}
        equal = [(factor == written[key]).all() for key, factor in factors.items()]
        unmoved = torch.stack(equal).tolist() if equal else []
        for (key, basis), same in zip(self.bases.items(), unmoved, strict=True):
            if not same:
                self._written[key] = factors[key].clone()
            up = None if same else basis.up()
            for piece in self._pieces[key]:
                if up is not None:
                    part = piece.of(up)
                    piece.weight.narrow(-1, piece.first_column, part.shape[-1]).copy_(part)
                for module in piece.modules:
                    module.__dict__.pop(piece.name, None)

    def shadow(self) -> None:
        """Let forward passes read U from the factors, so that gradients reach them."""
        columns: dict[tuple[nn.Module, str], list[Tensor]] = {}
        for key, basis in self.bases.items():
            up = basis.up()
            if self.kept_share < 1 and key in self._coded:
                up = self._first_channels(up, self._coded[key])
            for piece in self._pieces[key]:
                for module in piece.modules:
                    columns.setdefault((module, piece.name), []).append(piece.of(up))
        for (module, name), found in columns.items():
            # An attribute of the instance is found before its parameter of that name.
            module.__dict__[name] = found[0] if len(found) == 1 else torch.cat(found, dim=-1)

    def _first_channels(self, up: Tensor, coded: bool) -> Tensor:
        kept = kept_channels(up.shape[-1], self.kept_share, coded)
        mask = torch.arange(up.shape[-1], device=up.device) < kept
        return up * mask.to(up.dtype)

    def orthonormality_error(self) -> float | None:
        """Largest error of all bases, None if they are not constrained."""
        errors = [basis.orthonormality_error() for basis in self.bases.values()]
        return max((error for error in errors if error is not None), default=None)


def _key(name: str) -> str:
    """A module's name as a key of `nn.ModuleDict`, which allows no dots."""
    return name.replace(".", "/")


def _sharing(modules: dict[str, LatentAttention]) -> list[list[str]]:
    """Names of the modules, those that share their bases together."""
    groups: dict[tuple, list[str]] = {}
    for name, module in modules.items():
        group = module.plan.basis_group
        groups.setdefault((name,) if group is None else (group,), []).append(name)
    return list(groups.values())


def _independent(group: list[LatentAttention]):
    """(name, U, its part of [k; v], pieces) of each independent basis of modules that share it; no
    part for one of lengths that are plain, of which no channel may be left out."""
    first = group[0]
    width = first.head.key_width
    keys = tuple(module.k_b_proj for module in group)
    values = tuple(module.v_b_proj for module in group)
    k, v = keys[0].weight, values[0].weight
    whole, key_half, value_half = slice(None), slice(width), slice(width, None)
    if first.head.decouples:
        # The metric is one of keys that do not rotate, see `split_keys`.
        turns = first.plan.qk_rope_head_dim
        yield "r", k[:, :turns], None, [Piece(keys)]
        pieces = [Piece(keys, first_column=turns), Piece(values, first_row=width)]
        yield "kv", torch.cat([k[:, turns:], v]), whole, pieces
        return
    if first.plan.kind.joint:
        yield "kv", torch.cat([k, v]), whole, [Piece(keys), Piece(values, first_row=width)]
        return
    yield "k", k, key_half, [Piece(keys)]
    yield "v", v, value_half, [Piece(values)]


def _blocks(metric: Tensor, part: slice | None, up: Tensor) -> list[Tensor]:
    """The metric of a part of [k; v], or of each head's keys where U is (J, D, r); the identity for
    no part."""
    if part is None:
        return [torch.eye(up.shape[0], dtype=torch.float64)]
    own = metric[part, part]
    if up.ndim == 2:
        return [own]
    D = up.shape[1]
    return [own[j * D : (j + 1) * D, j * D : (j + 1) * D] for j in range(up.shape[0])]

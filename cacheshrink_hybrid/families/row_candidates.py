"""Rows that a model of an unknown family may have, guessed from how its attention is built.

Names and shapes of an attention's layers say where queries, keys and values come from, and which
norms and gates there are. When it rotates and normalises stands in its forward alone, so every way
of that is a candidate, the likeliest first; which of them is right shows only when it is tried
(`conversion/row_trial.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import UnsupportedModelError
from .family import (
    Family,
    always,
    fused,
    in_windows,
    in_windows_if_any,
    interleaved,
    never,
    split,
)

ROLE = re.compile(
    r"(?:[wW]|to_|attn_|project_)?(q|k|v)(?:uery|ey|alue)?(?:_?(?:proj|lin|layer|net))?"
)
"""Names of layers that give queries, keys or values alone."""
OUTPUT = re.compile(
    r"(?:[wW]|to_|attn_|attention_)?o(?:ut|utput)?(?:_?(?:proj|lin|layer))?|dense|[cC]_proj|resid_proj"
)
"""Names of the layer behind the heads."""
NORM = re.compile(r"norm|(?:^|_)ln(?:_|$)")


@dataclass(frozen=True, slots=True)
class Option:
    """A value of one field of a row, and the Python expression that makes it."""

    name: str
    value: Any
    expression: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row, and the fields in which it differs from Llama's."""

    family: Family
    options: tuple[Option, ...]

    @property
    def source(self) -> str:
        """The row as it stands in `families/rows.py`."""
        fields = ", ".join(f"{option.name}={option.expression}" for option in self.options)
        return f"Family({fields})"


def candidates(model: PreTrainedModel) -> Iterator[Candidate]:
    """Rows that the structure of a causal language model allows, those nearest to Llama's first.

    Raises:
        UnsupportedModelError: no layer has an attention with linear projections of its own that
            could be latent ones, and one behind its heads.
    """
    config = model.config
    path, attention = _attention(model)
    choices = [
        *_placed(path),
        _projections(attention, *Family(model_type="").head_sizes(config)[:3]),
        _outputs(attention, config),
        *_normed(attention),
        *_gated(attention, config),
        *_rotated(model, config),
    ]
    found = [tuple(option for option in options if option) for options in product(*choices)]
    named = _named("model_type", config.model_type)
    for options in sorted(found, key=len):
        if _consistent(options):
            fields = (named, *options)
            family = Family(**{option.name: option.value for option in fields})
            yield Candidate(family, fields)


Choices = Sequence[Option | None]
"""Values of a field that are possible; None for Llama's own."""


def _linear_size(module: nn.Module) -> tuple[int, int] | None:
    """(out, in) of a linear layer; None for another module."""
    if isinstance(module, Conv1D):
        return module.weight.shape[1], module.weight.shape[0]
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    return None


def _layers_of(attention: nn.Module) -> dict[str, tuple[int, int]]:
    sizes = {name: _linear_size(child) for name, child in attention.named_children()}
    return {name: size for name, size in sizes.items() if size is not None}


def _attention(model: PreTrainedModel) -> tuple[str, nn.Module]:
    """Path, with `{}` for the layer, and module of the first attention of the decoder's layers."""
    depth = model.config.num_hidden_layers
    for name, layers in model.named_modules():
        if not isinstance(layers, nn.ModuleList) or len(layers) != depth:
            continue
        for layer in layers:
            for inner, module in layer.named_modules():
                if "attention" in type(module).__name__.lower() and len(_layers_of(module)) > 1:
                    return f"{name}.{{}}.{inner}", module
    raise UnsupportedModelError(
        f"the model has no list of {depth} layers with an attention "
        "that has linear layers for queries, keys, values and outputs"
    )


def _placed(path: str) -> Iterator[Choices]:
    if path != Family(model_type="").attention:
        yield [_named("attention", path)]


def _projections(attention: nn.Module, H: int, J: int, D: int) -> Choices:
    """Where queries, keys and values may come from."""
    sizes = _layers_of(attention)
    roles = {match[1]: name for name in sizes if (match := ROLE.fullmatch(name))}
    if len(roles) == 3:
        names = tuple(roles[role] for role in "qkv")
        if names == ("q_proj", "k_proj", "v_proj"):
            return [None]
        return [_option("projections", split(*names), "split", names)]
    found: list[Option] = []
    for name, (rows, _) in sizes.items():
        if rows == (H + 2 * J) * D:
            ways = (fused, interleaved) if J == H else (fused,)
            found += [_option("projections", way(name), way.__name__, (name,)) for way in ways]
    if not found:
        raise UnsupportedModelError(
            f"no linear layers of the attention ({_shown(sizes)}) give {H} queries and {J} keys "
            f"and values of {D} channels, apart or together"
        )
    return found


def _shown(sizes: Mapping[str, tuple[int, int]]) -> str:
    return ", ".join(f"{name} {rows} x {width}" for name, (rows, width) in sizes.items())


def _named(name: str, value: str) -> Option:
    return Option(name, value, f'"{value}"')


def _option(name: str, value: Any, maker: str, arguments: Sequence[str]) -> Option:
    words = ", ".join(f'"{argument}"' for argument in arguments)
    return Option(name, value, f"{maker}({words})")


def _outputs(attention: nn.Module, config: PretrainedConfig) -> Choices:
    """Layers that give the hidden size back, those that are called so first."""
    sizes = _layers_of(attention)
    fitting = [name for name, (rows, _) in sizes.items() if rows == config.hidden_size]
    fitting = [name for name in fitting if not ROLE.fullmatch(name)]
    named = [name for name in fitting if OUTPUT.fullmatch(name)]
    if not fitting:
        raise UnsupportedModelError(
            f"no linear layer of the attention ({_shown(sizes)}) gives the {config.hidden_size} "
            "channels of the hidden size back behind its heads: it lies in another module, and a "
            "row can only say how one module attends from its input to its output"
        )
    return [None if name == "o_proj" else _named("output", name) for name in named or fitting]


def _normed(attention: nn.Module) -> Iterator[Choices]:
    """Norms of queries and keys: which, over what, and when."""
    names = [name for name, _ in attention.named_children() if NORM.search(name)]
    pairs = [
        (query, key)
        for query in names
        for key in names
        if query != key and key == query.replace("query", "key").replace("q", "k")
    ]
    if not pairs:
        return
    yield [Option("norms", pair, str(pair).replace("'", '"')) for pair in pairs]
    yield [None, Option("norms_follow_rotation", True, "True")]
    yield [None, Option("norm_spans_heads", True, "True")]


def _gated(attention: nn.Module, config: PretrainedConfig) -> Iterator[Choices]:
    """Gates of the heads' outputs: a layer of their own, or half of the queries'."""
    H, J, D = Family(model_type="").head_sizes(config)[:3]
    sizes = _layers_of(attention)
    gates = [name for name, (rows, _) in sizes.items() if "g" in name and rows in (H, H * D)]
    gates = [name for name in gates if not OUTPUT.fullmatch(name) and not ROLE.fullmatch(name)]
    if gates:
        yield [_named("gate", name) for name in gates]
    queries = [rows for name, (rows, _) in sizes.items() if ROLE.fullmatch(name)]
    if 2 * H * D in queries and 2 * H * D != J * D:
        yield [Option("gated", True, "True")]


ROTATIONS: tuple[Callable[[PretrainedConfig, int], bool], ...] = (
    always,
    in_windows,
    in_windows_if_any,
    never,
)


def _rotated(model: PreTrainedModel, config: PretrainedConfig) -> Iterator[Choices]:
    """Which layers rotate keys, by which module, and how."""
    paths = [
        name
        for name, module in model.base_model.named_modules()
        if "rotary" in type(module).__name__.lower() and "." not in name
    ]
    if not paths:
        yield [Option("uses_rope", never, "never")]
        return
    kinds = set(getattr(config, "layer_types", None) or ())
    mixed = "sliding_attention" in kinds and len(kinds) > 1
    usable = ROTATIONS if mixed else (always, never)
    yield [
        None if rotation is always else Option("uses_rope", rotation, rotation.__name__)
        for rotation in usable
    ]
    yield [
        None
        if path == "rotary_emb"
        else Option("rotary", _constant(path), f'lambda config, i: "{path}"')
        for path in paths
    ]
    yield [None, Option("rotates_first", True, "True")]
    if mixed:
        yield [None, Option("rope_by_layer_type", True, "True")]


def _constant(path: str) -> Callable[[PretrainedConfig, int], str]:
    return lambda config, layer_idx: path


def _consistent(options: Sequence[Option]) -> bool:
    """Whether a row says nothing of a rotation that it does not have."""
    given = {option.name: option.value for option in options}
    rotations = {"rotary", "rotates_first", "rope_by_layer_type", "norms_follow_rotation"}
    return given.get("uses_rope") is not never or not rotations & set(given)

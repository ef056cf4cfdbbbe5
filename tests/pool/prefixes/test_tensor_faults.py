"""No tensors are taken for a tree of prefixes that are none."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.pool.prefixes.tensor_faults import tensor_fault
from cacheshrink_hybrid.pool.prefixes.tensors import fill, places_of, tensors_of
from tests.pool.shadow import Shadowed, small_layout

Tensors = dict[str, Tensor]


def made(**kinds) -> Shadowed:
    return Shadowed(small_layout(**kinds), 60)


def grown() -> Shadowed:
    """A tree of three edges and states, of rows of all tokens and of a window."""
    tree = made(windows=(None, 5), state=True)
    whole = tree.create()
    for count in (11, 9):
        assert tree.append([whole], [count])
        tree.offer(whole)
    assert tree.copy_prefix(whole, 20)
    twin = tree.running()[-1]
    assert tree.append([twin], [6])
    tree.offer(twin)
    return tree


def changed(name: str, change: Callable[[Tensor], Tensor | None]) -> Callable[[Tensors], None]:
    def act(tensors: Tensors) -> None:
        new = tensors[name].clone()
        found = change(new)
        tensors[name] = new if found is None else found

    return act


def put(name: str, place: object, value: float) -> Callable[[Tensors], None]:
    return changed(name, lambda tensor: tensor.__setitem__(place, value))


def test_trees_are_taken() -> None:
    tree = grown()
    tensors = tensors_of(tree.store.prefixes)
    assert len(tensors["nodes"]) == 3
    assert tensor_fault(tree.store.prefixes, tensors) is None
    other = made(windows=(None, 5), state=True)
    fill(other.store.prefixes, tensors)
    other.store.check_integrity()
    empty = made(windows=(None, 5), state=True)
    assert tensor_fault(empty.store.prefixes, tensors_of(empty.store.prefixes)) is None


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda tensors: tensors.pop("kinds"), "it has frames, .*, not frames, kinds"),
        (lambda tensors: tensors.clear(), "it has nothing, not"),
        (changed("tokens", lambda x: x.int()), "tokens is torch.int32 of"),
        (changed("frames", lambda x: x[:, :-1]), "frames is torch.uint8 of .* x "),
        (changed("frames", lambda x: x.flatten()), "frames is torch.uint8 of"),
        (changed("rows", lambda x: x[:-1]), "rows is torch.int64 of"),
        (changed("nodes", lambda x: x.flatten()), "nodes is torch.int64 of"),
        (changed("nodes", lambda x: x.sum()), "nodes is torch.int64 of"),
        (changed("state_frames", lambda x: x[:, :-1]), "state_frames is torch.int64 of"),
        (put("nodes", (1, 0), 2), "a node stands before its parent"),
        (put("nodes", (1, 0), -1), "a node stands before its parent"),
        (put("nodes", (0, 1), 2**62), "edges are to have 26 tokens"),
        (put("nodes", (0, 1), 0), "edges are to have 26 tokens"),
        (put("tokens", 0, -5), "a token is below 0"),
        (put("nodes", (0, 2), 7), "nodes are to have 3 states"),
        (put("nodes", (0, 2), 0), "nodes are to have 3 states"),
        (put("nodes", (2, 3), -1), "created, last_use, uses of a node"),
        (put("nodes", (2, 5), 2**62), "created, last_use, uses of a node"),
        (put("priorities", 0, float("nan")), "a priority is no number"),
        (changed("kinds", lambda x: x.new_full((3,), 255)), "kinds are not 3 lines"),
        (changed("kinds", lambda x: x[:0]), "kinds are not 3 lines"),
        (put("rows", (0, 0, 1), -1), "rows are to have .* frames"),
        (put("rows", (0, 0, 1), 2**62), "rows are to have .* frames"),
        (put("rows", (0, 0, 0), -8), "an edge of the tokens 0 to 11 has"),
        (put("rows", (1, 0, 0), 2**61), "an edge of the tokens 11 to 20 has"),
        (put("row_frames", 0, -1), "a frame is named that is none of"),
        (put("row_frames", 0, 2**40), "a frame is named that is none of"),
        (put("state_frames", (0, 0), 10**6), "a frame is named that is none of"),
        (changed("frames", lambda x: torch.cat([x, x[:1]])), "frames are to be of one kind each"),
        (
            changed("state_frames", lambda x: x[:, :1].expand(x.shape).contiguous()),
            "a frame is named twice in one place|of one kind each",
        ),
    ],
)
def test_others_are_not(spoil: Callable[[Tensors], None], fault: str) -> None:
    tree = grown()
    tensors = tensors_of(tree.store.prefixes)
    spoil(tensors)
    found = tensor_fault(tree.store.prefixes, tensors)
    assert found is not None
    assert "\n" not in found
    assert re.search(fault, found), found


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (put("places", 0, -1), "two frames lie in one place, or one before all others"),
        (changed("places", lambda x: x[:1].expand(x.shape).clone()), "two frames lie in one place"),
        (put("sums", 0, 2**32), "a checksum is not from 0 to 4294967295"),
        (changed("sums", lambda x: x[1:].clone()), r"sums is torch\.int64 of \(\d+,\), not"),
        (lambda tensors: tensors.pop("sums"), "it has .*, not "),
    ],
)
def test_places_of_frames_are_looked_at_too(spoil: Callable[[Tensors], object], fault: str) -> None:
    tree = grown().store.prefixes
    tensors = places_of(tree)
    tensors["sums"] = torch.zeros_like(tensors["places"])
    assert tensor_fault(tree, tensors) is None
    spoil(tensors)
    assert re.search(fault, str(tensor_fault(tree, tensors)))


def test_frames_of_one_kind_are_no_others() -> None:
    tree = grown()
    tensors = tensors_of(tree.store.prefixes)
    tensors["row_frames"][0] = tensors["state_frames"][0, 0]
    fault = tensor_fault(tree.store.prefixes, tensors)
    assert fault is not None
    assert "of one kind each" in fault


def test_nodes_behind_one_that_begin_alike() -> None:
    tree = grown()
    tensors = tensors_of(tree.store.prefixes)
    tensors["nodes"][2, 0] = tensors["nodes"][1, 0]
    tensors["tokens"][20] = tensors["tokens"][11]
    assert tensor_fault(tree.store.prefixes, tensors) == "two nodes behind one begin alike"


@pytest.mark.parametrize("seed", range(5))
def test_random_changes_are_refused_or_do_no_harm(seed: int) -> None:
    """Whatever number is exchanged, what is taken makes a tree that is sound."""
    random, tree = np.random.default_rng(seed), grown()
    for _ in range(40):
        tensors = {name: x.clone() for name, x in tensors_of(tree.store.prefixes).items()}
        names = [name for name in tensors if name not in ("frames", "kinds", "priorities")]
        flat = tensors[names[random.integers(len(names))]].view(-1)
        flat[random.integers(len(flat))] = int(random.integers(-2, 30))
        if tensor_fault(tree.store.prefixes, tensors) is None:
            other = made(windows=(None, 5), state=True)
            fill(other.store.prefixes, tensors)
            other.store.check_integrity()
            other.store.prefixes.clear()
            assert other.pool.num_held == 0

"""What keeps tensors from being a tree of prefixes: files come from anywhere.

Everything that `tensors.fill` goes by is looked at before anything is changed: shapes, counts,
numbers of frames and of nodes, and where rows begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..lifetime import LifetimeClass
from .tree import PrefixTree

LARGEST_COUNT = 2**53
"""Of uses and moments, which are counted up from what a file says."""
CHECKSUM_MASK = 2**32 - 1
NODE_NUMBERS = ("parent", "tokens", "state", "created", "last_use", "uses")


def tensor_fault(tree: PrefixTree, tensors: Mapping[str, Tensor]) -> str | None:
    """The first thing that is wrong with what should be from `tensors_of` a tree, or `places_of`
    one with `sums` of its frames; None for nothing.

    Args:
        tree: of the same layout and code of states.
    """
    return next(_faults(tree, tensors), None)


def _faults(tree: PrefixTree, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Each looks at what those before have found right."""
    layout = tree.layout
    yield from _of_forms(tree, tensors)
    nodes = tensors["nodes"].numpy()
    yield from _of_nodes(nodes, tensors)
    starts, ends = _places(nodes)
    counts = tensors["rows"][..., 1].numpy()
    if (counts < 0).any() or int(counts.astype(float).sum()) != len(tensors["row_frames"]):
        yield f"rows are to have {len(tensors['row_frames'])} frames, and count others"
    for number, lifetime in enumerate(layout.classes):
        rows = tensors["rows"][:, number].numpy()
        yield from _of_rows(lifetime, rows, starts, ends)
    yield from _of_frames(len(layout.classes), tensors, counts)
    if "places" in tensors:
        yield from _of_places(tensors["places"].numpy(), tensors["sums"].numpy())


def _of_forms(tree: PrefixTree, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Names, types and shapes; -1 is any size."""
    layout, state = tree.layout, tree.kept_state.num_frames
    num_nodes = len(tensors["nodes"]) if "nodes" in tensors and tensors["nodes"].ndim else -1
    numbers = (torch.int64, (-1,))
    where: dict[str, tuple[torch.dtype, tuple[int, ...]]]
    where = {"frames": (torch.uint8, (-1, layout.frame_bytes))}
    if "places" in tensors:
        where = {"places": numbers, "sums": (torch.int64, (len(tensors["places"]),))}
    forms = {
        **where,
        "tokens": numbers,
        "nodes": (torch.int64, (-1, len(NODE_NUMBERS))),
        "priorities": (torch.float64, (num_nodes,)),
        "kinds": (torch.uint8, (-1,)),
        "rows": (torch.int64, (num_nodes, len(layout.classes), 2)),
        "row_frames": numbers,
        "state_frames": (torch.int64, (-1 if state else 0, max(1, state))),
    }
    if set(tensors) != set(forms):
        yield f"it has {', '.join(sorted(tensors)) or 'nothing'}, not {', '.join(sorted(forms))}"
    for name, (dtype, shape) in forms.items():
        tensor = tensors[name]
        fits = len(shape) == tensor.ndim and all(
            due in (-1, size) for due, size in zip(shape, tensor.shape, strict=True)
        )
        if tensor.dtype != dtype or not fits:
            due = " x ".join("any" if size < 0 else str(size) for size in shape)
            yield f"{name} is {tensor.dtype} of {tuple(tensor.shape)}, not {dtype} of {due}"


def _of_nodes(nodes: np.ndarray, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    parents, counts, has_state = nodes[:, 0], nodes[:, 1], nodes[:, 2]
    if ((parents < 0) | (parents > np.arange(len(nodes)))).any():
        yield "a node stands before its parent"
    if (counts < 1).any() or int(counts.astype(float).sum()) != len(tensors["tokens"]):
        yield f"edges are to have {len(tensors['tokens'])} tokens, and count others"
    if (tensors["tokens"].numpy() < 0).any():
        yield "a token is below 0"
    if not np.isin(has_state, (0, 1)).all() or has_state.sum() != len(tensors["state_frames"]):
        yield f"nodes are to have {len(tensors['state_frames'])} states, and count others"
    if ((nodes[:, 3:] < 0) | (nodes[:, 3:] > LARGEST_COUNT)).any():
        yield f"{', '.join(NODE_NUMBERS[3:])} of a node are not all from 0 to {LARGEST_COUNT}"
    if not torch.isfinite(tensors["priorities"]).all():
        yield "a priority is no number"
    try:
        kinds = bytes(tensors["kinds"].tolist()).decode().split("\n")
    except UnicodeDecodeError:
        kinds = []
    if len(kinds) != max(1, len(nodes)):
        yield f"kinds are not {len(nodes)} lines of text"
    first = tensors["tokens"].numpy()[np.cumsum(counts) - counts]
    if len(set(zip(parents.tolist(), first.tolist(), strict=True))) != len(nodes):
        yield "two nodes behind one begin alike"


def _places(nodes: np.ndarray) -> tuple[list[int], list[int]]:
    """Tokens before each edge, and up to its end."""
    starts: list[int] = []
    ends = [0]
    for parent, count, *_ in nodes.tolist():
        starts.append(ends[parent])
        ends.append(starts[-1] + count)
    return starts, ends[1:]


def _of_rows(
    lifetime: LifetimeClass, rows: np.ndarray, starts: list[int], ends: list[int]
) -> Iterator[str]:
    """Rows begin within their edge, and have the frames that its tokens need; see `EdgeRows`."""
    for (first, count), start, end in zip(rows.tolist(), starts, ends, strict=True):
        begin = lifetime.frame_start(start)
        due = 0
        if lifetime.num_rows(start) < lifetime.num_rows(end) and first < lifetime.num_rows(end):
            due = lifetime.table_length(end) - first // lifetime.tokens_per_frame
        if not begin <= first <= end or count != due:
            yield (
                f"an edge of the tokens {start} to {end} has {count} {lifetime.name} frames from "
                f"row {first} on"
            )


def _of_frames(classes: int, tensors: Mapping[str, Tensor], counts: np.ndarray) -> Iterator[str]:
    """Every frame is of one kind, and has one."""
    total = len(tensors["places"] if "places" in tensors else tensors["frames"])
    row_frames = tensors["row_frames"].numpy()
    state_frames = tensors["state_frames"].numpy()
    named = np.concatenate([row_frames, state_frames.reshape(-1)])
    if ((named < 0) | (named >= total)).any():
        yield f"a frame is named that is none of {total}"
    bounds = [0, *np.cumsum(counts.reshape(-1)).tolist()]
    edges = [row_frames[begin:end] for begin, end in pairwise(bounds)]
    for held in (*edges, *state_frames):
        if len(np.unique(held)) != len(held):
            yield "a frame is named twice in one place"
    kinds = [np.concatenate([row_frames[:0], *edges[i::classes]]) for i in range(classes)]
    used = [np.unique(kind) for kind in (*kinds, state_frames)]
    if len(np.concatenate(used)) != total or len(np.unique(np.concatenate(used))) != total:
        yield f"{total} frames are to be of one kind each, and are not"


def _of_places(places: np.ndarray, sums: np.ndarray) -> Iterator[str]:
    if (places < 0).any() or len(np.unique(places)) != len(places):
        yield "two frames lie in one place, or one before all others"
    if ((sums < 0) | (sums > CHECKSUM_MASK)).any():
        yield f"a checksum is not from 0 to {CHECKSUM_MASK}"

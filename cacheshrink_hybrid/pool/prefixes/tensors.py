"""A tree of prefixes as tensors, to be kept in a file, and back.

frames        bytes of every frame that it refers to, once, (F, frame_bytes) uint8
tokens        of all edges, each node's behind those of the nodes before it, int64
nodes         per node, parents first: number of its parent (0 is the root), tokens of its edge,
              whether it has a state, when it was created and last used, and how often, (n, 6)
priorities    per node, float64
kinds         why each was kept, a line each, bytes of text
rows          per node and lifetime class: first row and number of frames, (n, classes, 2)
row_frames    of all rows, in that order, numbers in `frames`, int64
state_frames  of all states, (states, frames of a state) int64

Where the frames are in a file already, `places`, their numbers there, take the place of `frames`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ...errors import CacheFullError, SequenceError
from ..frame_ledger import FRAME_MASK, Handles
from ..frame_pool import FramePool
from ..sequence import NO_HANDLES
from .node import EdgeRows, PrefixNode
from .tree import PrefixTree


def tensors_of(tree: PrefixTree) -> dict[str, Tensor]:
    """What a tree holds, copied."""
    used, tensors = _described(tree)
    return {"frames": tree.frames.pool.read(used).cpu(), **tensors}


def places_of(tree: PrefixTree) -> dict[str, Tensor]:
    """The same with the numbers of the frames instead of their bytes."""
    used, tensors = _described(tree)
    return {"places": torch.from_numpy(used & FRAME_MASK), **tensors}


def _described(tree: PrefixTree) -> tuple[Handles, dict[str, Tensor]]:
    """Handles of all frames that a tree refers to, and the tensors beside their bytes."""
    nodes = list(tree)
    number_of = {tree.root: 0} | {node: number for number, node in enumerate(nodes, start=1)}
    row_frames = [rows.frames for node in nodes for rows in node.rows]
    states = [node.state for node in nodes if node.state is not None]
    used = np.unique(np.concatenate([NO_HANDLES, *row_frames, *states]))
    numbers = [
        (
            number_of[node.parent or tree.root],
            len(node.tokens),
            node.state is not None,
            node.created,
            node.last_use,
            node.uses,
        )
        for node in nodes
    ]
    rows = [[(x.first, len(x.frames)) for x in node.rows] for node in nodes]
    kinds = "\n".join(node.kind for node in nodes)
    size = max(1, tree.kept_state.num_frames)
    return used, {
        "tokens": _joined([node.tokens for node in nodes]),
        "nodes": torch.tensor(numbers, dtype=torch.int64).view(-1, 6),
        "priorities": torch.tensor([node.priority for node in nodes], dtype=torch.float64),
        "kinds": torch.tensor(list(kinds.encode()), dtype=torch.uint8),
        "rows": torch.tensor(rows, dtype=torch.int64).view(len(nodes), len(tree.layout.classes), 2),
        "row_frames": _joined([np.searchsorted(used, frames) for frames in row_frames]),
        "state_frames": _joined([np.searchsorted(used, state) for state in states]).view(-1, size),
    }


def _joined(parts: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate([NO_HANDLES, *parts]))


def fill(tree: PrefixTree, tensors: Mapping[str, Tensor]) -> None:
    """Let an empty tree hold what `tensors_of` a tree of the same digest gave.

    Raises:
        CacheFullError: the pool has too few free frames. Nothing was changed.
        SequenceError: the tree is not empty.
    """
    if any(True for _ in tree):
        raise SequenceError("the tree of prefixes is not empty; clear it before filling it")
    _hang(tree, tensors, _stored(tree.frames.pool, tensors["frames"], _kinds(tree, tensors)))


def fill_places(tree: PrefixTree, tensors: Mapping[str, Tensor]) -> None:
    """Let an empty tree over frames of a file, none of which is held, hold what `places_of` a tree
    over the same file gave.

    Raises:
        CacheFullError: the pool has fewer frames than the file had.
    """
    pool, places = tree.frames.pool, tensors["places"].numpy()
    least = int(places.max(initial=0))
    if least > pool.num_frames:
        raise CacheFullError(
            f"prefixes lie in {least} frames of {pool.frame_bytes} bytes, and {pool.num_frames} "
            f"are to be used; give at least {(least + 1) * pool.frame_bytes} bytes"
        )
    handles = np.empty(len(places), dtype=np.int64)
    for kind, numbers in _kinds(tree, tensors):
        handles[numbers] = pool.claim(places[numbers], kind)
    _hang(tree, tensors, handles)


def _row_frames(tensors: Mapping[str, Tensor]) -> list[np.ndarray]:
    """Numbers of the frames of each node and lifetime class."""
    ends = np.cumsum(tensors["rows"][:, :, 1].numpy().reshape(-1))
    return np.split(tensors["row_frames"].numpy(), ends)[:-1]


def _hang(tree: PrefixTree, tensors: Mapping[str, Tensor], handles: Handles) -> None:
    """Hang nodes into a tree; `handles` have one reference of ours each, which is given back."""
    row_frames, state_frames = _row_frames(tensors), tensors["state_frames"].numpy()
    num_classes = len(tree.layout.classes)
    kinds = bytes(tensors["kinds"].tolist()).decode().split("\n")
    nodes, state = [tree.root], 0
    at = 0
    for number, entry in enumerate(tensors["nodes"].tolist()):
        parent, count, has_state, created, last_use, uses = entry
        rows = [
            EdgeRows(int(first), handles[row_frames[number * num_classes + which]])
            for which, (first, _) in enumerate(tensors["rows"][number].tolist())
        ]
        node = PrefixNode(
            tensors["tokens"][at : at + count].numpy().copy(),
            nodes[parent].end + count,
            rows,
            state=handles[state_frames[state]] if has_state else None,
            kind=kinds[number],
            priority=float(tensors["priorities"][number]),
            created=created,
            last_use=last_use,
            uses=uses,
        )
        state, at = state + has_state, at + count
        nodes.append(node)
        tree.adopt(node, nodes[parent])
    tree.frames.pool.release(handles)


def _kinds(tree: PrefixTree, tensors: Mapping[str, Tensor]) -> list[tuple[str, np.ndarray]]:
    """The numbers of frames that serve each kind of content."""
    classes = tree.layout.classes
    row_frames, state_frames = _row_frames(tensors), tensors["state_frames"].numpy()
    found = [(lifetime.name, row_frames[i :: len(classes)]) for i, lifetime in enumerate(classes)]
    kinds = [(name, np.unique(_flat(parts))) for name, parts in found]
    return [*kinds, ("state", np.unique(state_frames))]


def _flat(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([NO_HANDLES, *parts])


def _stored(pool: FramePool, frames: Tensor, kinds: list[tuple[str, np.ndarray]]) -> Handles:
    """Handles, with one reference each, of fresh frames with these bytes."""
    if len(frames) > pool.num_free:
        needed = len(frames) * pool.frame_bytes
        raise CacheFullError(
            f"prefixes of {needed} bytes are to be loaded, and the pool has "
            f"{pool.num_free * pool.frame_bytes} free; give it more than "
            f"{needed + pool.frame_bytes} bytes"
        )
    handles = np.empty(len(frames), dtype=np.int64)
    for kind, numbers in kinds:
        handles[numbers] = pool.allocate(len(numbers), kind)
    pool.frames[torch.from_numpy(handles & FRAME_MASK).to(pool.device)] = frames.to(pool.device)
    return handles

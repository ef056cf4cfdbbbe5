"""What became of nodes says how likely others like them are used."""

from __future__ import annotations

import numpy as np
import pytest

from cacheshrink_hybrid.pool.prefixes.node import PrefixNode
from cacheshrink_hybrid.pool.prefixes.odds import MOST, WEIGHT, note, odds_of


def node_behind(parent: PrefixNode | None, kind: str = "", uses: int = 0) -> PrefixNode:
    node = PrefixNode(np.zeros(1, dtype=np.int64), 1, [], parent=parent)
    node.kind, node.uses = kind, uses
    return node


def test_the_formula() -> None:
    root = node_behind(None)
    chat, document = node_behind(root), node_behind(root)
    for used in (True, True, False):
        note(node_behind(chat, "end"), used=used)
    for _ in range(5):
        note(node_behind(document, "end"), used=False)
    around = (2 + WEIGHT / 2) / (8 + WEIGHT)
    assert odds_of(node_behind(root, "end")) == pytest.approx(around)
    assert odds_of(node_behind(chat, "end")) == pytest.approx((2 + WEIGHT * around) / (3 + WEIGHT))
    assert odds_of(node_behind(document, "end")) == pytest.approx(WEIGHT * around / (5 + WEIGHT))
    new = node_behind(root)
    assert odds_of(node_behind(new, "end")) == pytest.approx(around)


def test_kinds_and_uses_are_told_apart() -> None:
    root = node_behind(None)
    note(node_behind(root, "end"), used=False)
    note(node_behind(root, "branch"), used=True)
    note(node_behind(root, "end", uses=1), used=True)
    found = [odds_of(node_behind(root, *of)) for of in (("end",), ("branch",), ("end", 1))]
    assert found[0] < 0.5 < found[1] == found[2]
    assert odds_of(node_behind(root, "piece")) == 0.5
    note(node_behind(root, "end", uses=2), used=True)
    assert odds_of(node_behind(root, "end", uses=9)) > 0.5


def test_what_others_are_kept_behind_is_told_apart() -> None:
    root = node_behind(None)
    superseded, newest = node_behind(root, "end"), node_behind(root, "end")
    superseded.children[0] = newest
    for _ in range(3):
        note(superseded, used=False)
        note(newest, used=True)
    assert odds_of(superseded) < 0.5 < odds_of(newest)


def test_old_outcomes_weigh_less() -> None:
    root = node_behind(None)
    for used in [False] * 500 + [True] * int(MOST):
        note(node_behind(root, "end"), used=used)
    assert odds_of(node_behind(root, "end")) > 0.6

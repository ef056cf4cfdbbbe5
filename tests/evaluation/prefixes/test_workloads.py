"""Workloads begin alike as they say."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.evaluation.prefixes.workloads import (
    SYNTHETIC,
    PromptRequest,
    read_workload,
    synthetic_workload,
)


def alike(one: PromptRequest, other: PromptRequest) -> int:
    """Tokens that two prompts begin with."""
    count = min(len(one.prompt), len(other.prompt))
    differing = np.flatnonzero(one.prompt[:count] != other.prompt[:count])
    return int(differing[0]) if len(differing) else count


@pytest.mark.parametrize("name", SYNTHETIC)
def test_workloads_are_seeded_and_begin_alike(name: str) -> None:
    first, again, other = (synthetic_workload(name, 60, seed) for seed in (0, 0, 1))
    assert len(first) == 60
    assert all(np.array_equal(x.prompt, y.prompt) for x, y in zip(first, again, strict=True))
    assert not np.array_equal(first[0].prompt, other[0].prompt)
    assert all(x.arrival <= y.arrival for x, y in pairwise(first))
    shared = [max(alike(first[i], first[j]) for j in range(i)) for i in range(1, 60)]
    assert sum(count > 0 for count in shared) > 20
    assert all(len(request.output) for request in first)


def test_conversations_go_on_from_their_answers() -> None:
    requests = synthetic_workload("chats", 80)
    longer = 0
    for request in requests:
        for before in requests:
            whole = np.concatenate([before.prompt, before.output])
            longer += len(whole) < len(request.prompt) and np.array_equal(
                request.prompt[: len(whole)], whole
            )
    assert longer > 40


def test_fewer_groups_at_once_come_back_sooner() -> None:
    """Requests between two turns of one conversation."""
    gaps = []
    for beside in (2.0, 24.0):
        requests = synthetic_workload("documents", 120, beside=beside)
        firsts = [int(request.prompt[0]) for request in requests]
        again = [i - firsts.index(first) for i, first in enumerate(firsts)]
        gaps.append(sum(again) / sum(gap > 0 for gap in again))
    assert 3 * gaps[0] < gaps[1]


def test_recorded_traces(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    entries = [
        {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]},
        {"timestamp": 7, "input_length": 1300, "output_length": 0, "hash_ids": [0, 1, 9]},
    ]
    path.write_text("\n".join(map(json.dumps, entries)))
    one, other = read_workload(path)
    assert [len(x.prompt) for x in (one, other)] == [1100, 1300]
    assert alike(one, other) == 1024
    assert (other.arrival, len(one.output), len(other.output)) == (7.0, 5, 1)
    assert len(read_workload(path, 1)) == 1
    path.write_text("\n".join(map(json.dumps, reversed(entries))))
    assert [request.arrival for request in read_workload(path)] == [0.0, 7.0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        '{"timestamp": 0}',
        '{"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [1]}',
        '{"timestamp": 0, "input_length": 0, "output_length": 1, "hash_ids": []}',
    ],
)
def test_files_of_other_formats(text: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match="trace"):
        read_workload(path)


def test_what_cannot_be_made() -> None:
    for name, count in (("none", 5), ("chats", 0)):
        with pytest.raises(ConfigError, match="cannot be made; choose one of"):
            synthetic_workload(name, count)
    with pytest.raises(ConfigError, match="is no file"):
        read_workload(Path("nowhere"))

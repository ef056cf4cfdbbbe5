"""The plan of one attention module: what adds up, and what cannot be."""

from __future__ import annotations

import dataclasses
import json

import pytest

from cacheshrink_hybrid.errors import PlanError
from cacheshrink_hybrid.latents.plan import ChannelRun, LatentPlan

LATENT = LatentPlan(
    layer_ids=(0, 3),
    method="joint",
    kv_lora_rank=10,
    key_rank=10,
    value_rank=10,
    read_mode="absorb",
    runs=(ChannelRun(channels=7, bits=16), ChannelRun(channels=3, bits=16)),
)


def test_bytes_per_token() -> None:
    assert LATENT.bytes_per_token == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_lora_rank": 11}, "do not add up to kv_lora_rank=11"),
        ({"key_rank": 11}, "key_rank=11 .*exceeds kv_lora_rank=10"),
        ({"value_rank": 12}, "value_rank=12 .*exceeds kv_lora_rank=10"),
        ({"read_mode": "guess"}, "read_mode='guess' is unknown; one of"),
        ({"head_groups": 2}, "do not hold equally many channels of head_groups=2"),
        ({"exact_sinks": 4}, "exact_sinks=4 and exact_window=0 has exact_channels=0"),
        ({"exact_channels": 24}, "exact_window=0 has exact_channels=24"),
        ({"read_mode": "rotate", "block_slots": 64}, "method='joint' has read_mode='rotate'"),
        ({"method": "rotate_joint"}, "method='rotate_joint' has read_mode='absorb'"),
        ({"block_slots": 16}, "block_slots=16; methods that store rotated keys"),
        (
            {"method": "rotate_joint", "read_mode": "rotate", "block_slots": 48},
            "block_slots=48; .*a power of two",
        ),
        ({"rotary_frequencies": (0, 1)}, "rotary_frequencies=\\(0, 1\\).* and none elsewhere"),
        (
            {"method": "decoupled_rope", "read_mode": "decoupled", "rotary_frequencies": (0, 1)},
            "value_rank=10; a rotary key before the channels of values is due",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_contradictions(change: dict, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        dataclasses.replace(LATENT, **change)


@pytest.mark.parametrize("method", ["joint", "rotate_joint"])
def test_round_trip(method: str) -> None:
    plan = LATENT
    if method == "rotate_joint":
        plan = dataclasses.replace(LATENT, method=method, read_mode="rotate", block_slots=64)
    assert LatentPlan.from_dict(json.loads(json.dumps(dataclasses.asdict(plan)))) == plan


def test_exact_rows_hold_keys_and_values() -> None:
    plan = dataclasses.replace(LATENT, exact_sinks=4, exact_window=32, exact_channels=24)
    assert plan.exact_row_bytes == plan.exact_codec().row_bytes == 48
    assert [plan.exact_bytes(n) for n in (1, 10, 1000)] == [2 * 48, (4 + 10) * 48, (4 + 32) * 48]


def _per_head(*runs: tuple[int, int], key_rank: int) -> LatentPlan:
    channels = sum(run[0] for run in runs)
    return dataclasses.replace(
        LATENT,
        method="per_head",
        kv_lora_rank=channels,
        key_rank=key_rank,
        value_rank=channels - key_rank,
        runs=tuple(ChannelRun(channels=channels, bits=bits) for channels, bits in runs),
    )


def test_shares_of_a_head() -> None:
    plan = _per_head((24, 8), (12, 4), (40, 8), key_rank=36)
    assert plan.key_shares(4) == (6, 3)
    assert plan.key_shares(12) == (2, 1)


@pytest.mark.parametrize(
    ("runs", "key_rank", "num_heads"),
    [([(24, 8), (40, 8)], 24, 5), ([(24, 8), (40, 8)], 28, 4), ([(64, 8)], 32, 4)],
)
def test_shares_that_are_not_even(runs, key_rank: int, num_heads: int) -> None:
    message = f"do not share {key_rank} key channels evenly among {num_heads} heads"
    with pytest.raises(PlanError, match=message):
        _per_head(*runs, key_rank=key_rank).key_shares(num_heads)


def test_a_part_of_the_heads_has_its_share_of_every_run() -> None:
    runs = (ChannelRun(channels=8, bits=16), ChannelRun(channels=4, bits=16))
    ranks = {"kv_lora_rank": 12, "key_rank": 12, "value_rank": 12}
    plan = dataclasses.replace(LATENT, runs=runs, head_groups=4, **ranks)
    half = plan.part(2)
    assert [run.channels for run in half.runs] == [4, 2]
    assert (half.kv_lora_rank, half.key_rank, half.value_rank, half.head_groups) == (6, 6, 6, 2)
    assert half.part(2) == plan.part(4) and half.bytes_per_token == plan.bytes_per_token / 2
    assert plan.part_channels(1, 2) == [4, 5, 6, 7, 10, 11]
    assert plan.part_channels(0, 1) == list(range(12))
    assert plan.part(8) == plan.part(3) == plan  # whole rows

"""Integers that torch, NumPy or Python's counters do not take are refused where they are given."""

from __future__ import annotations

from dataclasses import fields

import pytest

from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.engine import SamplingParams
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.integers import NUMPY_SEEDS, SEEDS, check_counts
from cacheshrink_hybrid.training.settings import TrainingConfig

RECORDS = {CompressionConfig: SEEDS, TrainingConfig: NUMPY_SEEDS, SamplingParams: SEEDS}
COUNTS = [
    (record, field.name)
    for record in (CompressionConfig, TrainingConfig)
    for field in fields(record)
    if field.name != "seed" and str(field.type) in ("int", "int | None")
]


@pytest.mark.parametrize("record", RECORDS)
def test_seeds(record: type) -> None:
    allowed = RECORDS[record]
    for seed in (allowed.start, allowed.stop - 1):
        assert record(seed=seed).seed == seed
    for seed in (allowed.start - 1, allowed.stop, 10**5000, 1.0, True, "1"):
        with pytest.raises(ConfigError, match=f"at most {allowed.stop - 1}") as caught:
            record(seed=seed)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("record", "name"), COUNTS, ids=str)
def test_counts(record: type, name: str) -> None:
    assert len(COUNTS) > 20
    for value in (2**63, 10**100):
        with pytest.raises(ConfigError, match=f"{name}=.* must be a whole number of at most"):
            record(**{name: value})
    with pytest.raises(ConfigError, match=f"{name}=-1 must be a whole number"):
        record(**{name: -1})


def test_one_token_is_no_calibration_sequence() -> None:
    with pytest.raises(ConfigError, match="max_calibration_length=1 must be a whole number >= 2"):
        CompressionConfig(max_calibration_length=1)


@pytest.mark.parametrize("value", [0, -1, "x", 1.0, True, None, 2**63])
def test_counts_of_arguments(value: object) -> None:
    check_counts(rows=1, columns=5)
    with pytest.raises(ConfigError, match=r"^rows=.* must be a whole number"):
        check_counts(rows=value, columns=5)
    with pytest.raises(ConfigError, match=r"rows=.*; columns="):
        check_counts(rows=value, columns=value)

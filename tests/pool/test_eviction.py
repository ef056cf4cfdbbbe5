"""The table of policies by name."""

from __future__ import annotations

import copy
import pickle

import pytest

from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.pool.eviction import NAMES, POLICIES, policy_of


def test_every_name_is_that_of_its_row() -> None:
    for name in (*POLICIES, "lru_cap_1", "lru_cap_12"):
        policy = policy_of(name)
        assert policy.name == name
        for twin in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
            assert (twin.name, twin.states_per_path) == (name, policy.states_per_path)
    assert policy_of("lru_cap_12").states_per_path == 12
    assert (*POLICIES, "lru_cap_N") == NAMES


@pytest.mark.parametrize("name", ["", "random", "lru_cap", "lru_cap_0", "lru_cap_-1", "lfu_3"])
def test_unknown_policies(name: str) -> None:
    with pytest.raises(ConfigError, match=r"choose one of lru, .*lru_cap_N \(N a number"):
        policy_of(name)

"""A kind of mixer is a row and a class, a method of its states a row and a function."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.conversion.convert import convert_model
from cacheshrink_hybrid.errors import PlanError
from cacheshrink_hybrid.families import model_spec, states
from cacheshrink_hybrid.methods import STATE_METHODS, StateMethod
from cacheshrink_hybrid.states.fit.bases import GroupMoments, StateBasis, orthonormal_basis
from cacheshrink_hybrid.states.kinds import MIXER_KINDS, MixerKind, compressible_layers
from cacheshrink_hybrid.states.mixers.mamba2 import Mamba2Mixer
from cacheshrink_hybrid.states.mixers.mixer import RecurrentMixer
from tests.families.tiny_configs import tiny_model
from tests.models import calibration_ids, random_ids

HERE = __name__
CONFIG = CompressionConfig(compression_ratio=1.0, state_ratio=2.0, state_dtype="float16")


class TwinMixer(Mamba2Mixer):
    """As Mamba-2."""


def first_channels(group: GroupMoments) -> StateBasis:
    """Directions of the source's channels, in their order."""
    falling = torch.diag(torch.arange(len(group.reads), 0, -1, dtype=torch.float64))
    return orthonormal_basis(falling, group.reads, group.costs)


@pytest.mark.parametrize("kind", MIXER_KINDS.values(), ids=lambda kind: kind.name)
def test_rows_name_what_exists(kind: MixerKind) -> None:
    assert issubclass(kind.mixer_class(), RecurrentMixer)
    assert set(kind.methods) <= set(STATE_METHODS)
    assert set(kind.folded_columns) <= set(kind.methods)
    assert kind.name in states.SIZES


def test_a_kind_of_mixer_is_a_row_and_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tiny_model("bamba")
    plan = convert_model(expected, CONFIG, calibration_ids())
    row = replace(MIXER_KINDS["mamba2"], name="twin", mixer=f"{HERE}:TwinMixer")
    monkeypatch.setitem(MIXER_KINDS, "twin", row)
    monkeypatch.setitem(states.SIZES, "twin", states.SIZES["mamba2"])
    monkeypatch.setitem(states.MIXERS, "bamba", replace(states.MIXERS["bamba"], kind="twin"))
    model = tiny_model("bamba")
    found = convert_model(model, CONFIG, calibration_ids())
    assert {state.kind for state in found.states} == {"twin"}
    assert [replace(state, kind="mamba2") for state in found.states] == list(plan.states)
    assert any(isinstance(module, TwinMixer) for module in model.modules())
    assert torch.equal(model(random_ids(1, 9)).logits, expected(random_ids(1, 9)).logits)
    model.generate(random_ids(2, 5), max_new_tokens=3)


def test_a_kind_that_has_no_row_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = model_spec(tiny_model("bamba").config)
    assert compressible_layers(spec)
    monkeypatch.delitem(MIXER_KINDS, "mamba2")
    assert not compressible_layers(spec)


@pytest.mark.parametrize("name", ["kind", "method"])
def test_a_plan_of_a_row_that_is_gone(name: str) -> None:
    plan = convert_model(tiny_model("bamba"), CONFIG, calibration_ids()).states[0]
    with pytest.raises(PlanError, match=f"{name}='novelty' of recurrent layer 0 is unknown; one"):
        replace(plan, **{name: "novelty"})


def test_a_method_of_states_is_a_row_and_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    row = StateMethod(name="first", words="the first channels", basis=f"{HERE}:first_channels")
    monkeypatch.setitem(STATE_METHODS, row.name, row)
    kind = replace(MIXER_KINDS["mamba2"], methods=("first",))
    monkeypatch.setitem(MIXER_KINDS, kind.name, kind)
    model = tiny_model("bamba")
    plan = convert_model(model, replace(CONFIG, state_method="first"), calibration_ids())
    narrowed = [state for state in plan.states if state.method != "full"]
    assert {state.method for state in narrowed} == {"first"}
    for state in narrowed:
        mixer = next(m for m in model.modules() if getattr(m, "state_plan", None) == state)
        for matrix, rank in zip(mixer.state_write, state.ranks, strict=True):
            assert torch.allclose(matrix[:rank, :rank].abs(), torch.eye(rank), atol=1e-6)
    model.generate(random_ids(2, 5), max_new_tokens=3)

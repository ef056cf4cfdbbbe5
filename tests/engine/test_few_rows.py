"""Decoding steps of a few sequences compute the linear layers of a model for few rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cacheshrink_hybrid.engine import few_rows, runner
from cacheshrink_hybrid.engine.few_rows import is_compiled
from cacheshrink_hybrid.engine.runner import Runner
from cacheshrink_hybrid.kernels.backend import Backend
from cacheshrink_hybrid.linear_map import is_plain
from tests.engine.shipped import shipped_model

pytest.importorskip("numba")
NUM_SEQUENCES = 3


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each product that the kernel takes, on whatever CPU."""
    rows: list[int] = []
    real = few_rows.few_rows_linear

    def linear(x: Tensor, *others: Tensor) -> Tensor:
        rows.append(x.numel() // x.shape[-1])
        return real(x, *others)

    monkeypatch.setattr(few_rows, "few_rows_linear", linear)
    monkeypatch.setattr(runner, "has_few_rows_kernel", lambda: True)
    return rows


def decoded(backend: Backend) -> tuple[Tensor, Runner]:
    """Logits of a step of some sequences behind prompts of many tokens."""
    made = Runner(shipped_model()[0].float(), 1 << 22, backend=backend)
    names = list(range(NUM_SEQUENCES))
    for name in names:
        tokens = [5 + name + i % 7 for i in range(20)]
        made.store.create(name)
        made.store.reserve([name], [len(tokens)])
        made.prefill(name, tokens)
    made.store.reserve(names, [1] * NUM_SEQUENCES)
    return made.decode(names, [9] * NUM_SEQUENCES), made


def test_steps_of_a_few_sequences(counted: list[int]) -> None:
    found, _ = decoded("auto")
    assert counted and set(counted) == {NUM_SEQUENCES}
    due, _ = decoded("torch")
    torch.testing.assert_close(found, due, rtol=1e-3, atol=1e-3)


def test_torch_computes_what_is_its_own(counted: list[int]) -> None:
    """With its backend, and outside of the engine's steps."""
    decoded("torch")
    assert not counted
    decoded("auto")
    before = len(counted)
    nn.functional.linear(torch.ones(3, 4), torch.ones(5, 4))
    assert len(counted) == before


def test_layers_are_as_they_were_afterwards(counted: list[int]) -> None:
    """Also after a step that fails, and those with a forward of their own throughout."""
    model = shipped_model()[0]
    plain = [module for module in model.modules() if type(module) is nn.Linear]
    own = plain[0].__dict__["forward"] = plain[0].forward
    try:
        with pytest.raises(KeyError), few_rows.linear_by_few_rows(model):
            assert plain[0].forward is own
            assert all("forward" in module.__dict__ for module in plain)
            assert [module for module in plain if not is_plain(module)] == plain[:1]
            raise KeyError
        assert [module for module in plain if "forward" in module.__dict__] == plain[:1]
    finally:
        del plain[0].__dict__["forward"]


def test_compiled_models_are_left_alone(counted: list[int]) -> None:
    model = shipped_model()[0]
    assert not is_compiled(model)
    inner = next(module for module in model.modules() if isinstance(module, nn.Linear))
    inner._compiled_call_impl = inner._call_impl
    try:
        assert is_compiled(model)
        decoded("auto")
        assert not counted
    finally:
        inner._compiled_call_impl = None

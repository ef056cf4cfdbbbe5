"""What a pooled cache hands to kernels gives what torch reads from it: pieces, padding, beams."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cacheshrink_hybrid import make_cache
from cacheshrink_hybrid.errors import ConfigError, KernelUnavailableError
from cacheshrink_hybrid.kernels import backend as backends
from cacheshrink_hybrid.kernels.backend import Backend
from cacheshrink_hybrid.latents.attention.module import LatentAttention
from cacheshrink_hybrid.states.mixers.mixer import RecurrentMixer
from tests.dispatch import run_references
from tests.families.tiny_configs import tiny_model
from tests.models import converted_copy, logits_in_pieces, random_ids
from tests.subprocesses import run_python

FEW = {"compression_ratio": 6.0}
"""So few bytes that it shows which tokens are exact."""
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("gpt2", "auto", {}),
    "llama": ("llama", "joint", {}),
    "float32": ("llama", "auto", {"cache_bits": 16}),
    "exact": ("llama", "auto", {**FEW, "exact_sinks": 2, "exact_window": 5}),
    "exact-absorbed": ("gpt2", "auto", {**FEW, "exact_window": 3}),
    "exact-rotate": ("llama", "rotate_joint", {**FEW, "exact_sinks": 3}),
    "exact-softcap-window": ("gemma2", "auto", {**FEW, "exact_sinks": 1, "exact_window": 4}),
    "exact-sinks": ("gpt_oss", "auto", {**FEW, "exact_sinks": 2, "exact_window": 4}),
    "rotate": ("llama", "rotate", {}),
    "window": ("mistral-window", "auto", {}),
    "sinks": ("gpt_oss", "auto", {}),
    "softcap": ("gemma2", "auto", {}),
    "mamba2": ("bamba", "auto", {"state_dtype": "int8", "replay_length": 2}),
    "mamba2-refitted": (
        "bamba",
        "auto",
        {"state_dtype": "float16", "replay_length": 1, "state_method": "select"},
    ),
    "mamba2-pruned": (
        "bamba",
        "auto",
        {"state_dtype": "float16", "replay_length": 1, "state_method": "prune"},
    ),
    "delta-net": ("qwen3_next", "auto", {"state_dtype": "float16", "replay_length": 1}),
    # Groups of different ranks.
    "delta-net-ranks": ("qwen3_next", "auto", {"state_dtype": "int8", "replay_length": 3}),
    "mamba1": ("jamba", "auto", {"state_dtype": "int8", "replay_length": 1}),
}


@cache
def model_of(name: str) -> PreTrainedModel:
    case, method, settings = CASES[name]
    settings = {"cache_bits": "auto", **settings}
    if "state_dtype" in settings:
        settings = {"state_ratio": 2.0, **settings}
    return converted_copy(tiny_model(case), 2.0, method, metric="activation", **settings)


def assert_close(got: Tensor, due: Tensor) -> None:
    """Equal but for rounding, which may choose the other of two codes now and then."""
    assert got.isfinite().all()
    assert (got - due).abs().max() <= 2e-4 * due.abs().max()


@pytest.fixture(params=["triton", "cpu"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """References in the place of Triton's kernels, and functions that are compiled for the CPU."""
    if request.param == "triton":
        run_references(monkeypatch)
    else:
        pytest.importorskip("numba")
    return request.param


@pytest.fixture
def references(monkeypatch: pytest.MonkeyPatch) -> None:
    run_references(monkeypatch)


@pytest.mark.parametrize("name", CASES)
def test_pieces(kernels: Backend, name: str) -> None:
    """A prompt, longer pieces than decoding takes, pieces of some tokens, single tokens."""
    model, ids = model_of(name), random_ids(2, 44)
    pieces = [9, 20, 3, 1, 1, 8, 1, 1]
    got, due = (
        logits_in_pieces(model, ids, pieces, make_cache(model, backend=backend))
        for backend in (kernels, "torch")
    )
    assert_close(got, due)


@pytest.mark.usefixtures("references")
@pytest.mark.parametrize("name", ["mamba2", "mamba2-refitted", "delta-net"])
def test_what_writes_and_reads_is_projected_where_it_is_convolved(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launch that convolves brings B and C into the state's basis; torch multiplies nothing."""
    model, projected, plain = model_of(name), [], RecurrentMixer.narrowed
    monkeypatch.setattr(
        RecurrentMixer,
        "narrowed",
        lambda self, channels, matrix: (
            projected.append(channels.shape[1]) or plain(self, channels, matrix)
        ),
    )
    logits_in_pieces(model, random_ids(2, 11), [9, 1, 1], make_cache(model, backend="triton"))
    assert set(projected) == {9}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "exact", "exact-rotate", "window", "mamba2"])
@torch.no_grad()
def test_left_padding(kernels: Backend, name: str, attention: str) -> None:
    model = model_of(name)
    before = model.config._attn_implementation
    model.set_attn_implementation(attention)
    ids, mask = random_ids(3, 16), torch.ones(3, 16, dtype=torch.long)
    mask[1, :5] = mask[2, :11] = 0
    logits = {}
    for backend in (kernels, "torch"):
        cache = make_cache(model, backend=backend)  # type: ignore[arg-type]
        found = []
        for begin, end in ((0, 9), (9, 13), (13, 15), (15, 16)):
            output = model(ids[:, begin:end], attention_mask=mask[:, :end], past_key_values=cache)
            found.append(output.logits[:, -1])
        logits[backend] = torch.stack(found)
    model.set_attn_implementation(before)
    assert_close(logits[kernels], logits["torch"])


@pytest.mark.parametrize(
    ("name", "wish"),
    [
        *(
            (name, wish)
            for name in ("llama", "mamba2", "delta-net")
            for wish in ("greedy", "beams")
        ),
        ("llama", "prompt lookup"),
        ("exact", "beams"),
        ("exact", "prompt lookup"),
    ],
)
def test_generate(kernels: Backend, name: str, wish: str) -> None:
    model, ids = model_of(name), random_ids(1, 12)
    wishes: dict[str, Any] = {
        "greedy": {},
        "beams": {"num_beams": 3},
        "prompt lookup": {"prompt_lookup_num_tokens": 3},
    }[wish]
    outputs = []
    for backend in (kernels, "torch"):
        model.kernel_backend = backend
        outputs.append(model.generate(ids, do_sample=False, max_new_tokens=10, **wishes))
    model.kernel_backend = "auto"
    assert torch.equal(outputs[0], outputs[1])


@pytest.mark.usefixtures("references")
@pytest.mark.parametrize("pieces", [[1] * 9, [2, 1, 1, 1, 3, 1]], ids=str)
def test_the_first_inputs_of_a_ring(pieces: list[int]) -> None:
    """Before a ring has been full once, no state has been written that kernels could read."""
    settings = {"state_ratio": 2.0, "state_dtype": "int8", "replay_length": 4}
    model = converted_copy(tiny_model("bamba"), 2.0, metric="activation", cache_bits=8, **settings)
    got, due = (
        logits_in_pieces(model, random_ids(2, 9), pieces, make_cache(model, backend=backend))
        for backend in ("triton", "torch")
    )
    assert_close(got, due)


@pytest.mark.usefixtures("references")
@torch.no_grad()
def test_states_are_not_recorded_by_kernels() -> None:
    model, ids = model_of("mamba2"), random_ids(1, 12)
    model.kernel_backend = "triton"
    try:
        with pytest.raises(KernelUnavailableError, match=r"past is recorded.* backend='auto'"):
            model.generate(ids, do_sample=False, max_new_tokens=4, prompt_lookup_num_tokens=3)
        cache = make_cache(model)
        model(ids, past_key_values=cache)
        cache.activate_past_recording()
        with pytest.raises(KernelUnavailableError, match="past is recorded"):
            model(ids[:, :1], past_key_values=cache)
    finally:
        model.kernel_backend = "auto"


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run compiled")
@torch.no_grad()
def test_interpreted_kernels() -> None:
    pytest.importorskip("triton")
    model, ids = model_of("softcap"), random_ids(1, 12)
    got, due = (
        logits_in_pieces(model, ids, [11, 1], make_cache(model, backend=backend))
        for backend in ("triton", "torch")
    )
    assert_close(got, due)


@pytest.mark.usefixtures("references")
@torch.no_grad()
def test_masks_that_kernels_do_not_take_are_refused() -> None:
    model, ids = model_of("llama"), random_ids(1, 8)
    mask = torch.ones(1, 1, 1, 8, dtype=torch.bool)
    mask[..., 3] = False
    cache = make_cache(model, backend="triton")
    model(ids[:, :7], past_key_values=cache)
    with pytest.raises(
        KernelUnavailableError, match="not causal from each sequence's first visible"
    ):
        model(ids[:, 7:], attention_mask=mask, past_key_values=cache)


@pytest.mark.usefixtures("references")
def test_gradients_are_refused() -> None:
    model, ids = model_of("llama"), random_ids(1, 8)
    cache = make_cache(model, backend="triton")
    with torch.no_grad():
        model(ids[:, :7], past_key_values=cache)
    with pytest.raises(KernelUnavailableError, match="no backward pass"):
        model(ids[:, 7:], past_key_values=cache)


@pytest.mark.usefixtures("references")
@pytest.mark.parametrize(
    ("case", "settings", "reason"),
    [
        ("olmo2", {}, "mean square of a head's channels"),
        ("jamba", {"state_ratio": 1.5, "replay_length": 2}, "replays the inputs of Mamba-1"),
    ],
)
@torch.no_grad()
def test_layers_that_kernels_cannot_read_are_refused(
    case: str, settings: dict[str, Any], reason: str
) -> None:
    settings = {"metric": "activation", "cache_bits": "auto", **settings}
    model = converted_copy(tiny_model(case), 2.0, **settings)
    with pytest.raises(KernelUnavailableError, match=rf"layer \d+ .*{reason}"):
        model(random_ids(1, 8), past_key_values=make_cache(model, backend="triton"))
    model(random_ids(1, 8), past_key_values=make_cache(model, backend="auto"))


@pytest.mark.usefixtures("references")
@torch.no_grad()
def test_a_window_that_is_exact_throughout_is_not_read_by_kernels() -> None:
    """Conversion makes none; plans of checkpoints may have one."""
    model = copy.deepcopy(model_of("window"))
    for module in model.modules():
        if isinstance(module, LatentAttention):
            width = module.head.width
            module.plan = replace(module.plan, exact_window=8, exact_channels=width)
    with pytest.raises(KernelUnavailableError, match="covers its sliding window of 8"):
        model(random_ids(1, 8), past_key_values=make_cache(model, backend="triton"))


def test_backends_that_there_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    wrong: Backend = "cuda"  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="backend='cuda' is unknown"):
        make_cache(model, backend=wrong)
    with pytest.raises(ConfigError, match="backend='cuda' is unknown"):
        model.kernel_backend = wrong  # type: ignore[assignment]
    monkeypatch.setattr(backends, "_interpreting", lambda: False)
    if not torch.cuda.is_available():
        with pytest.raises(KernelUnavailableError, match="got CPU tensors"):
            make_cache(model, backend="triton")


WITHOUT_NUMBA = """
import sys

sys.modules["numba"] = sys.modules["llvmlite"] = None  # importing them raises
import importlib.util

find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "numba" else find(name, *rest)

from cacheshrink_hybrid import make_cache
from cacheshrink_hybrid.errors import KernelUnavailableError
from tests.families.tiny_configs import tiny_model
from tests.models import converted_copy, random_ids

model = converted_copy(tiny_model("llama"), compression_ratio=2.0)
assert model.generate(random_ids(1, 70), max_new_tokens=3, do_sample=False).shape == (1, 73)
try:
    make_cache(model, backend="cpu")
except KernelUnavailableError as error:
    print(error)
"""


def test_where_numba_is_not_installed() -> None:
    result = run_python("-c", WITHOUT_NUMBA)
    assert result.returncode == 0, result.stderr
    assert "pip install 'cacheshrink_hybrid[cpu]'" in result.stdout

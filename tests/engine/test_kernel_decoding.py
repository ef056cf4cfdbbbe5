"""The engine decodes by kernels what it decodes by torch, whatever the batch is padded to."""

from __future__ import annotations

import copy
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from cacheshrink_hybrid.engine import LLM, SamplingParams
from cacheshrink_hybrid.engine.coverage import kernel_coverage
from cacheshrink_hybrid.engine.runner import Runner
from cacheshrink_hybrid.engine.step_tables import StepTables, batch_buckets
from cacheshrink_hybrid.errors import KernelUnavailableError, NotSupportedError
from cacheshrink_hybrid.families import model_spec
from cacheshrink_hybrid.kernels import backend as backends
from cacheshrink_hybrid.pool.prefixes.lookup import PrefixStatistics
from cacheshrink_hybrid.states.mixers.installation import uninstall_mixer
from cacheshrink_hybrid.states.mixers.mixer import RecurrentMixer
from tests.dispatch import run_references
from tests.engine.idle import assert_idle
from tests.families.tiny_configs import tiny_model
from tests.models import converted_copy, logits_in_pieces, random_ids
from tests.tolerances import assert_same_computation

FEW = {"compression_ratio": 6.0}
"""So few bytes that it shows which tokens are exact."""
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("gpt2", "auto", {}),
    "llama": ("llama", "joint", {}),
    "llama-float32": ("llama", "joint", {"cache_bits": 16}),
    "llama-per-head": ("llama", "per_head", {}),
    "llama-rotate": ("llama", "rotate_joint", {}),
    "window": ("mistral-window", "auto", {}),
    "exact": ("llama", "joint", {**FEW, "exact_sinks": 2, "exact_window": 5}),
    "exact-absorbed": ("gpt2", "auto", {**FEW, "exact_window": 3}),
    "exact-per-head": ("llama", "per_head", {**FEW, "exact_sinks": 3}),
    "exact-windows": ("gemma2", "auto", {**FEW, "exact_sinks": 1, "exact_window": 4}),
    "exact-hybrid": (
        "granitemoehybrid",
        "auto",
        {**FEW, "state_dtype": "int8", "replay_length": 3, "exact_sinks": 2, "exact_window": 4},
    ),
    "two-rotations": ("gemma3_text", "auto", {}),
    "normalised-keys": ("qwen3", "auto", {}),
    "sinks": ("gpt_oss", "auto", {}),
    "mamba2": ("bamba", "auto", {"state_dtype": "float16", "replay_length": 1}),
    "mamba2-replay": ("granitemoehybrid", "auto", {"state_dtype": "int8", "replay_length": 3}),
    "mamba1": ("jamba", "auto", {"state_dtype": "int8", "replay_length": 1}),
    "delta-net": ("qwen3_next", "auto", {"state_dtype": "float16", "replay_length": 1}),
    "delta-net-replay": (
        "qwen3_5_text",
        "auto",
        {"state_dtype": "int8", "replay_length": 3, "state_ratio": 1.2},
    ),
    # Groups of different ranks.
    "delta-net-ranks": ("qwen3_next", "auto", {"state_dtype": "int8", "replay_length": 3}),
    "shared-attention": ("zamba2", "auto", {"state_dtype": "float32", "replay_length": 1}),
    "both-in-a-layer": ("falcon_h1", "auto", {"state_dtype": "bfloat16", "replay_length": 2}),
}
INTERPRETED = ("gpt2", "window", "exact", "mamba2-replay", "delta-net-ranks")
MEMORY = 4 << 20


@cache
def model_of(name: str) -> PreTrainedModel:
    case, method, settings = CASES[name]
    settings = {"cache_bits": "auto", **settings}
    if "state_dtype" in settings:
        settings = {"state_ratio": 2.0, **settings}
    return converted_copy(tiny_model(case), 2.0, method, metric="activation", **settings)


def prompts(count: int = 5) -> list[list[int]]:
    return [random_ids(1, 3 + 5 * i % 17, seed=i)[0].tolist() for i in range(count)]


def generated(name: str, backend: str, max_tokens: int, count: int = 5) -> list[tuple[int, ...]]:
    # A coded state is rounded where a chunk ends, so hybrids get their prompts whole.
    has_states = "state_dtype" in CASES[name][2]
    chunk = 512 if has_states else 6
    llm = LLM(model_of(name), cache_memory=MEMORY, prefill_chunk=chunk, backend=backend)
    complete = {"triton": True, "cpu": not has_states, "torch": False}
    assert llm.runner.coverage.complete == complete[backend]
    outputs = llm.generate(prompts(count), SamplingParams(max_tokens=max_tokens))
    assert_idle(llm)
    return [output.token_ids for output in outputs]


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_torch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    due = generated(name, "torch", 12)
    run_references(monkeypatch)
    assert generated(name, "triton", 12) == due


@pytest.mark.parametrize("name", CASES)
def test_outputs_by_functions_of_cpus(name: str) -> None:
    """Also of eager attention, for the engine hands out no probabilities."""
    pytest.importorskip("numba")
    model = model_of(name)
    before = model.config._attn_implementation
    due = generated(name, "torch", 12)
    try:
        for attention in (before, "eager"):
            model.set_attn_implementation(attention)
            assert generated(name, "cpu", 12) == due
    finally:
        model.set_attn_implementation(before)


def generated_alike(name: str, backend: str) -> tuple[list[tuple[int, ...]], PrefixStatistics]:
    """Tokens of prompts that share their beginning, one after the other, so that the third and
    fourth go on from a checkpoint of the second."""
    llm = LLM(model_of(name), cache_memory=MEMORY, backend=backend)
    shared = random_ids(1, 34)[0].tolist()
    prompts = [[*shared, 10 + i, *random_ids(1, 9, seed=i)[0].tolist()] for i in range(4)]
    outputs = [llm.generate(prompt, SamplingParams(max_tokens=8))[0] for prompt in prompts]
    statistics = llm.statistics.prefixes
    assert_idle(llm)
    return [output.token_ids for output in outputs], statistics


@pytest.mark.parametrize(
    "name", ["llama", "window", "exact", "exact-hybrid", "mamba2-replay", "delta-net"]
)
def test_kernels_go_on_from_prefixes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    due, statistics = generated_alike(name, "torch")
    assert statistics.saved_tokens >= 2 * 34
    run_references(monkeypatch)
    assert generated_alike(name, "triton") == (due, statistics)


@pytest.mark.parametrize("name", ["exact", "exact-per-head", "exact-windows"])
@pytest.mark.parametrize("chunks", [[70, 20, 9], [3, 66, 1, 29], [99]], ids=str)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_exact_tokens_of_chunks(
    name: str, chunks: list[int], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of which the pool keeps the end only, and forks of what they leave."""
    run_references(monkeypatch)
    model, ids = model_of(name), random_ids(1, sum(chunks) + 3)
    due = logits_in_pieces(model, ids, [ids.shape[1]])[0]
    # A latent may lie within rounding of the edge between two codes.
    near = {"rtol": 0.0, "atol": 1e-4 * float(due.abs().max())}
    runner = Runner(model, MEMORY, backend=backend)
    runner.store.create("a")
    begin = 0
    for count in chunks:
        runner.store.reserve(["a"], count)
        logits = runner.prefill("a", ids[0, begin : begin + count].tolist())
        begin += count
        torch.testing.assert_close(logits, due[begin - 1], **near)
    runner.store.fork("a", "b")
    for at in range(begin, ids.shape[1]):
        runner.store.reserve(["a", "b"], 1)
        logits = runner.decode(["a", "b"], [int(ids[0, at]), 5 + at % 50])
        torch.testing.assert_close(logits[0], due[at], **near)
    runner.store.check_integrity()


def filled(runner: Runner, lengths: list[int]) -> list[Tensor]:
    """Prefill sequences 0, 1, ... of these lengths; their logits."""
    logits = []
    for seq_id, length in enumerate(lengths):
        runner.store.create(seq_id)
        runner.store.reserve([seq_id], length)
        logits.append(runner.prefill(seq_id, random_ids(1, length, seed=seq_id)[0].tolist()))
    return logits


def decoded(runner: Runner, seq_ids: list[int], steps: int) -> Tensor:
    """Logits (steps, B, V) of some more tokens of these sequences."""
    found = []
    for step in range(steps):
        runner.store.reserve(seq_ids, 1)
        found.append(runner.decode(seq_ids, [5 + seq_id + step for seq_id in seq_ids]))
    return torch.stack(found)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run compiled")
@pytest.mark.parametrize("name", INTERPRETED)
def test_interpreted_kernels_give_the_logits_of_torch(name: str) -> None:
    pytest.importorskip("triton")
    lengths, logits = [9, 4], {}
    for backend in ("torch", "triton"):
        runner = Runner(model_of(name), MEMORY, backend=backend)
        filled(runner, lengths)
        logits[backend] = decoded(runner, [0, 1], 1)
    size = logits["torch"].abs().max()
    assert (logits["triton"] - logits["torch"]).abs().max() <= 2e-4 * size


@pytest.mark.parametrize("name", ["mamba2-replay", "delta-net-replay"])
def test_prompts_shorter_than_a_ring(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their states have not been written when kernels first read them."""
    run_references(monkeypatch)
    logits = {}
    for backend in ("torch", "triton"):
        runner = Runner(model_of(name), MEMORY, backend=backend)
        filled(runner, [9, 1, 2])
        logits[backend] = decoded(runner, [0, 1, 2], 4)
    size = logits["torch"].abs().max()
    assert (logits["triton"] - logits["torch"]).abs().max() <= 2e-4 * size


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CASES)
def test_recorded_graphs_give_the_logits_of_torch(name: str) -> None:
    """One batch size after the other: graphs are recorded, and replayed with padding."""
    model, logits = copy.deepcopy(model_of(name)).cuda(), {}
    for backend, graphs in (("torch", False), ("triton", False), ("triton", True)):
        runner = Runner(model, MEMORY, backend=backend, max_batch=8, cuda_graphs=graphs)
        filled(runner, [9, 4, 17, 1, 8])
        found = [decoded(runner, ids, 2) for ids in ([0], [0, 1, 2, 3, 4], [3, 1], [2, 0, 4, 1])]
        logits[backend, graphs] = torch.cat([part.flatten(0, 1) for part in found])
    due = logits["torch", False]
    for got in (logits["triton", False], logits["triton", True]):
        assert (got - due).abs().max() <= 2e-4 * due.abs().max()
    assert torch.equal(logits["triton", False], logits["triton", True])


@pytest.mark.parametrize("name", ["llama", "window", "mamba2", "mamba2-replay", "delta-net"])
def test_padding_reads_and_writes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five sequences in a batch of 8 and in one of 5: the same logits, and the same arena, of
    which nothing has changed but the sequences' own frames."""
    run_references(monkeypatch)
    lengths, arenas, logits = [9, 4, 17, 1, 8], [], []
    for max_batch in (5, 8):
        runner = Runner(model_of(name), MEMORY, backend="triton", max_batch=max_batch)
        runner.store.pool.arena.fill_(0x5A)
        filled(runner, lengths)
        runner.store.reserve([4], 1)
        runner.store.commit([4], 0)
        before = runner.store.pool.frames.clone()
        logits.append(decoded(runner, [0, 1, 2, 3], 3))
        after = runner.store.pool.frames
        running = {0, 1, 2, 3}
        own = {
            int(frame)
            for seq_id in running
            for number in range(len(runner.store.layout.classes))
            for frame in runner.store.frame_table([seq_id], number)[0]
        }
        if runner.store.layout.state.num_frames:
            _, written = runner.store.state_tables(sorted(running))
            own |= set(written.flatten().tolist())
        changed = (before != after).any(dim=1).nonzero()[:, 0].tolist()
        assert changed and set(changed) <= own
        arenas.append(after)
    assert_same_computation(logits[1], logits[0])
    assert torch.equal(arenas[0], arenas[1])


def test_more_sequences_than_the_largest_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    run_references(monkeypatch)
    logits = []
    for max_batch in (2, 8):
        runner = Runner(model_of("llama"), MEMORY, backend="triton", max_batch=max_batch)
        filled(runner, [3, 9, 4, 6, 5])
        logits.append(decoded(runner, [0, 1, 2, 3, 4], 2))
    assert_same_computation(logits[1], logits[0])


@pytest.mark.parametrize("name", ["mamba2", "mamba2-replay"])
def test_forks_leave_the_state_they_came_from(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_references(monkeypatch)
    logits = {}
    for backend in ("torch", "triton"):
        runner = Runner(model_of(name), MEMORY, backend=backend)
        filled(runner, [7])
        runner.store.fork(0, 1)
        digest = runner.store.digest(0)
        twin = decoded(runner, [1], 4)
        assert runner.store.digest(0) == digest
        logits[backend] = torch.stack([twin, decoded(runner, [0], 4)])
    assert_same_computation(logits["triton"], logits["torch"])


class Allocations(TorchDispatchMode):
    """Bytes of the tensors that operations return, views apart."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in given:
                self.num_bytes += leaf.untyped_storage().nbytes()
        return result


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts what the interpreter's host does")
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_step_writes_nothing_of_the_size_of_the_history(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels run, but no work is done in them: what a step allocates is what its host allocates.
    It must not grow with the history; expanded keys and values, or the decoded latents, would."""
    pytest.importorskip("triton")
    from cacheshrink_hybrid.kernels.launch import recording

    allocated = {}
    for length in (16, 208):
        runner = Runner(model_of(name), MEMORY, backend="triton", max_batch=1)
        filled(runner, [length])
        runner.store.reserve([0], 1)
        with recording(90), Allocations() as counted:
            runner.decode([0], [7])
        allocated[length] = counted.num_bytes
        runner = Runner(model_of(name), MEMORY, backend="torch")
        filled(runner, [length])
        runner.store.reserve([0], 1)
        with Allocations() as counted:
            runner.decode([0], [7])
        allocated[-length] = counted.num_bytes
    config = runner.config
    width = config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    expanded = 192 * config.num_hidden_layers * 2 * heads * width * 4
    assert allocated[-208] - allocated[-16] > expanded / 2  # torch does expand
    assert allocated[208] - allocated[16] < expanded / 20


def test_buckets() -> None:
    assert batch_buckets(1) == [1]
    assert batch_buckets(6) == [1, 2, 4, 6]
    sizes = batch_buckets(256)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == 256
    # At most half of a batch is padding, and little of a large one.
    assert all(nxt <= 2 * size for size, nxt in pairwise(sizes))
    assert sizes[-1] - sizes[-2] <= 32


def test_tables_of_fewer_sequences_after_more() -> None:
    runner = Runner(model_of("mamba2-replay"), MEMORY, backend="torch")
    filled(runner, [9, 4, 7])
    runner.store.reserve([0, 1, 2], 1)
    tables = StepTables(
        runner.store.layout, 4, 1, max_tokens=64, replay_lengths=[3], device=torch.device("cpu")
    )
    tables.fill(runner.store, [0, 1, 2])
    assert tables.context_lens.tolist() == [10, 5, 8, 0]
    assert tables.num_pending[3].tolist() == [0, 1, 1, 0]
    tables.fill(runner.store, [2])
    assert tables.context_lens.tolist() == [8, 0, 0, 0]
    assert tables.read_table is not None
    assert tables.write_table is not None
    assert (tables.read_table[1:, 0] == -1).all()
    assert (tables.write_table[1:, 0] == -1).all()
    assert all((slots[1:] == -1).all() and slots[0] >= 0 for slots in tables.slot_mappings)


def test_what_kernels_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run_references(monkeypatch)
    with pytest.raises(KernelUnavailableError, match="nothing of it is converted"):
        LLM(tiny_model("llama"), cache_memory=MEMORY, backend="triton")
    for case, settings, reason in (
        ("olmo2", {}, "mean square of a head's channels"),
        ("jamba", {"state_dtype": "int8", "replay_length": 2}, "replays the inputs of Mamba-1"),
    ):
        model = converted_copy(
            tiny_model(case), 2.0, metric="activation", cache_bits="auto", **settings
        )
        with pytest.raises(KernelUnavailableError, match=rf"layer \d+: .*{reason}"):
            LLM(model, cache_memory=MEMORY, backend="triton")
        found = kernel_coverage(model, model_spec(model.config), "auto")
        assert found.faults and not found.complete
        assert all(reason in fault for fault in found.faults.values())
    with pytest.raises(NotSupportedError, match="cuda_graphs=True"):
        LLM(model_of("llama"), cache_memory=MEMORY, backend="triton", cuda_graphs=True)


def test_states_that_are_converted_in_part_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run_references(monkeypatch)
    model = copy.deepcopy(model_of("mamba2"))
    mixers = [module for module in model.modules() if isinstance(module, RecurrentMixer)]
    uninstall_mixer(mixers[0])
    due = rf"layers \[{mixers[0].layer_idx}\] have recurrent states as in the source"
    with pytest.raises(KernelUnavailableError, match=due):
        LLM(model, cache_memory=MEMORY, backend="triton")


def test_triton_without_a_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_interpreting", lambda: False)
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    with pytest.raises(KernelUnavailableError, match="got CPU tensors"):
        LLM(model_of("llama"), cache_memory=MEMORY, backend="triton")

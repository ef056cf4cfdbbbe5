"""vLLM's model of a source, with attention over latents, computes what the converted model does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("vllm", reason="needs vLLM on CPUs: bash scripts/vllm.sh")
from vllm.config import get_layers_from_vllm_config, set_current_vllm_config
from vllm.distributed.parallel_state import (
    cleanup_dist_env_and_memory,
    init_distributed_environment,
    initialize_model_parallel,
)
from vllm.forward_context import set_forward_context
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.mamba.ops.ssu_dispatch import (
    initialize_mamba_ssu_backend,
)
from vllm.model_executor.model_loader import get_model
from vllm.platforms import current_platform
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.core.kv_cache_utils import (
    get_kv_cache_config_from_groups,
    get_kv_cache_groups,
)
from vllm.v1.kv_cache_interface import MambaSpec

from cacheshrink_hybrid import convert_to_mla, load_mla_model, save_mla_model
from cacheshrink_hybrid.caches import make_cache
from cacheshrink_hybrid.demo import model_path
from cacheshrink_hybrid.model.attached_plan import plan_of
from cacheshrink_hybrid.vllm.support import UNTESTED
from tests.models import pair, random_ids
from tests.tolerances import LOGITS, assert_same_logits
from tests.vllm.engines import (
    BLOCK,
    CODED,
    EXACT,
    assert_few_other_codes,
    vllm,
    word_tokenizer,
)

pytestmark = pytest.mark.vllm

ROOM = 2**21
STEPS = (((0, 30),), ((0, 40), (1, 20)), ((0, 1), (1, 13)), ((0, 1), (1, 1)))
"""Requests of each forward pass, with how many tokens: those with a single one come first."""
LENGTHS = (72, 34)
CASES = {
    "dense": ("llama", {"method": "joint", "ratio": 2.0}),
    "hybrid": ("granitemoehybrid", {"method": "joint", "ratio": 2.0}),
    "hybrid, rotated": ("granitemoehybrid-rope", {"method": "rotate", **CODED}),
    "hybrid, exact": ("granitemoehybrid", {"method": "joint", **CODED, **EXACT}),
}


@dataclass
class Memory:
    """The blocks of a model, and who has which of them.

    Attributes:
        held: blocks of a request in a group.
    """

    config: Any
    groups: list[Any]
    held: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    free: Iterator[int] = field(default_factory=lambda: iter(range(1, 10_000)))

    @classmethod
    def of(cls, config: Any) -> Memory:
        """Allocated as vLLM's runner does."""
        layers = get_layers_from_vllm_config(config, AttentionLayerBase)
        specs = {name: layer.get_kv_cache_spec(config) for name, layer in layers.items()}
        config.cache_config.kv_cache_layout = "LBNHC"
        groups = get_kv_cache_groups(config, specs)
        laid_out = get_kv_cache_config_from_groups(config, groups, ROOM)
        initialize_mamba_ssu_backend(config.mamba_config, laid_out)
        (size,) = {tensor.size for tensor in laid_out.kv_cache_tensors}
        arena = torch.zeros(size, dtype=torch.int8)
        for tensor in laid_out.kv_cache_tensors:
            (name,) = tensor.layers
            spec = specs[name]
            states = isinstance(spec, MambaSpec)
            width = spec.state_content_size_bytes
            rows = 1 if states else spec.block_size
            strides = tensor.block_stride, width * rows, width, 1
            shape = laid_out.num_blocks, 1, rows, width
            layers[name].bind_kv_cache(arena.as_strided(shape, strides))
        return cls(config, groups)

    def metadata(self, step: Sequence[tuple[int, int]], ends: Sequence[int]) -> dict[str, Any]:
        """What each layer is told of a forward pass."""
        counts = torch.tensor([0] + [count for _, count in step], dtype=torch.int32)
        starts, lens = counts.cumsum(0).int(), torch.tensor(ends, dtype=torch.int32)
        found = {}
        for number, group in enumerate(self.groups):
            spec, (name,) = group.kv_cache_spec, group.layer_names
            tables, slots = [], []
            for (request, count), end in zip(step, ends, strict=True):
                table = self.held.setdefault((number, request), [])
                states = isinstance(spec, MambaSpec)
                needed = 1 if states else -(-end // spec.block_size)
                table += [next(self.free) for _ in range(needed - len(table))]
                tables.append(table)
                if not states:
                    size = spec.block_size
                    slots += [
                        table[at // size] * size + at % size for at in range(end - count, end)
                    ]
            longest = max(map(len, tables))
            common = CommonAttentionMetadata(
                query_start_loc=starts,
                query_start_loc_cpu=starts,
                seq_lens=lens,
                seq_lens_cpu_upper_bound=lens,
                num_reqs=len(step),
                num_actual_tokens=int(starts[-1]),
                max_query_len=int(counts.max()),
                max_seq_len=max(ends),
                block_table_tensor=torch.tensor(
                    [[*table, *[0] * (longest - len(table))] for table in tables],
                    dtype=torch.int32,
                ),
                slot_mapping=torch.tensor(slots, dtype=torch.int64),
                is_prefilling=torch.tensor([count > 1 for _, count in step]),
            )
            layer = self.config.compilation_config.static_forward_context[name]
            builder = layer.get_attn_backend().get_builder_cls()
            made = builder(spec, [name], self.config, torch.device("cpu"))
            found[name] = made.build(0, common)
        return found


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What vLLM's worker does for a CPU, before it loads a model, and afterwards."""
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)
    monkeypatch.setenv(UNTESTED, "1")
    yield
    cleanup_dist_env_and_memory()


@pytest.mark.parametrize("name", CASES)
def test_pieces_of_several_requests(name: str, tmp_path: Path, process: None) -> None:
    case, settings = CASES[name]
    save_mla_model(pair(case, **settings).converted, word_tokenizer(), tmp_path / "converted")
    _compare(tmp_path / "converted", tmp_path / "store")


def test_the_shipped_model_at_a_quarter(tmp_path: Path, process: None) -> None:
    settings = {"compression_ratio": 4.0, "num_calibration_samples": 4, "dtype": "float32"}
    save_mla_model(*convert_to_mla(model_path(), **settings), tmp_path / "converted")
    _compare(tmp_path / "converted", tmp_path / "store")


@torch.no_grad()
def _compare(directory: Path, store: Path) -> None:
    """Logits of vLLM's model of a checkpoint beside those of the converted model.

    Args:
        store: file that vLLM's only process meets itself by.
    """
    texts = [random_ids(1, length, seed=length) for length in LENGTHS]
    loaded, _ = load_mla_model(directory)
    loaded.kernel_backend = "torch"
    due = [loaded(ids, past_key_values=make_cache(loaded)).logits[0] for ids in texts]
    config = vllm.EngineArgs(
        model=str(directory),
        dtype="float32",
        max_model_len=128,
        block_size=BLOCK,
        enable_prefix_caching=False,
    ).create_engine_config()
    with set_current_vllm_config(config):
        init_distributed_environment(1, 0, f"file://{store}", 0, "gloo")
        initialize_model_parallel(1)
        model = get_model(vllm_config=config)
        current_platform.update_block_size_for_backend(config)
        memory = Memory.of(config)
        found: list[list[Tensor]] = [[] for _ in texts]
        for step in STEPS:
            begun = [sum(map(len, found[request])) for request, _ in step]
            ends = [begin + count for begin, (_, count) in zip(begun, step, strict=True)]
            spans = list(zip((request for request, _ in step), begun, ends, strict=True))
            ids = torch.cat([texts[request][0, begin:end] for request, begin, end in spans])
            positions = torch.cat([torch.arange(begin, end) for _, begin, end in spans])
            given = memory.metadata(step, ends)
            with set_forward_context(given, config, num_tokens=len(ids)):
                logits = model.compute_logits(model(ids, positions))
            counts = [count for _, count in step]
            for (request, _), part in zip(step, logits.split(counts), strict=True):
                found[request].append(part)
    pairs = [(torch.cat(x), y) for x, y in zip(found, due, strict=True)]
    if any(entry.coded for entry in plan_of(loaded).latents):
        difference = torch.cat([(x - y).abs().amax(1) for x, y in pairs])
        assert_few_other_codes(difference, LOGITS[torch.float32])
        return
    for logits, expected in pairs:
        assert_same_logits(logits, expected)

"""vLLM makes blocks of rows as large as recurrent states ask for, and no larger."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM on CPUs: bash scripts/vllm.sh")
from vllm.config import VllmConfig
from vllm.model_executor.models import ModelRegistry
from vllm.platforms.cpu import CpuPlatform
from vllm.v1.core.kv_cache_utils import get_kv_cache_configs, get_kv_cache_groups
from vllm.v1.kv_cache_interface import MambaSpec

from cacheshrink_hybrid.vllm.cache_layers import ExactRows, TokenRows
from cacheshrink_hybrid.vllm.cache_specs import register_specs

pytestmark = pytest.mark.vllm

STATE = ((3, 80), (4, 16, 8))
STATE_BYTES = 4 * (3 * 80 + 4 * 16 * 8)


def _cached(row_bytes: dict[int, int], exact_bytes: int) -> tuple[TokenRows, ExactRows]:
    """Rows of layers with so many bytes, and exact ones beside them."""
    layouts: dict[int, Any] = {i: SimpleNamespace(row_bytes=n) for i, n in row_bytes.items()}
    exact: dict[int, Any] = {i: SimpleNamespace(row_bytes=exact_bytes) for i in row_bytes}
    tokens = TokenRows("model.layers.0.rows", layouts)
    return tokens, ExactRows("model.layers.0.exact_rows", exact, tokens, num_sinks=4, window=9)


def _aligned(tokens: TokenRows, exact: ExactRows, block_size: int, monkeypatch: Any) -> Any:
    """vLLM's settings once its blocks hold a state."""
    model = SimpleNamespace(
        get_mamba_state_shape_from_config=lambda config: STATE,
        get_mamba_state_dtype_from_config=lambda config: (torch.float32, torch.float32),
    )
    found = lambda architecture, model_config: (model, architecture)  # noqa: E731
    monkeypatch.setattr(ModelRegistry, "resolve_model_cls", found)
    backend = tokens.get_attn_backend()
    assert exact.get_attn_backend() is backend  # vLLM asks the first one that it finds
    monkeypatch.setattr(CpuPlatform, "_find_non_ssm_backends", lambda config: [backend])
    config = VllmConfig()
    config.cache_config.kv_cache_layout = "LBNHC"
    config.cache_config.block_size = block_size
    config.model_config = SimpleNamespace(
        dtype=torch.bfloat16,
        use_mla=False,
        architecture="",
        get_num_kv_heads=lambda parallel: 8,
        get_head_size=lambda: 128,
    )
    CpuPlatform._align_hybrid_block_size(config, backend)
    return config


@pytest.mark.parametrize("row_bytes", [{1: 33}, {1: 33, 5: 20, 7: 48}, {0: 3000}])
@pytest.mark.parametrize("block_size", [16, 32])
def test_blocks_hold_a_state_and_hardly_more(
    row_bytes: dict[int, int], block_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of all layers count, not keys and values of one; all groups have pages of one size."""
    tokens, exact = _cached(row_bytes, exact_bytes=96 if len(row_bytes) > 1 else 128)
    config = _aligned(tokens, exact, block_size, monkeypatch)
    per_token, cache = sum(row_bytes.values()), config.cache_config
    page = cache.block_size * per_token
    assert cache.block_size % block_size == 0
    assert STATE_BYTES <= page < STATE_BYTES + block_size * per_token
    state = MambaSpec(
        shapes=STATE,
        dtypes=(torch.float32, torch.float32),
        block_size=256,
        page_size_padded=cache.mamba_page_size_padded,
    )
    specs = {
        tokens.name: tokens.get_kv_cache_spec(config),
        **{f"model.layers.{i}.mixer": state for i in range(10, 13)},
        exact.name: exact.get_kv_cache_spec(config),
    }
    groups = get_kv_cache_groups(config, specs)
    assert [len(group.layer_names) for group in groups] == [1] * 5
    assert {group.kv_cache_spec.page_size_bytes for group in groups} == {page}


def test_states_that_fit_leave_blocks_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, exact = _cached({0: 3000}, exact_bytes=4000)
    config = _aligned(tokens, exact, 64, monkeypatch)
    assert config.cache_config.block_size == 64
    assert config.cache_config.mamba_page_size_padded == 64 * 3000


@pytest.mark.parametrize("exact_bytes", [(), (96, 128, 64)])
def test_stages_of_a_pipeline_have_blocks_of_one_size(exact_bytes: tuple[int, ...]) -> None:
    """Whatever their layers take; vLLM gives all of them a group for each lifetime of rows."""
    register_specs()
    row_bytes, room, found = ({0: 33, 1: 20}, {2: 75}, {3: 7}), 2**20, []
    exact = [dict.fromkeys(of, n) for of, n in zip(row_bytes, exact_bytes, strict=False)]
    for own in range(3):
        others = [number for number in range(3) if number != own]
        layouts = {i: SimpleNamespace(row_bytes=n) for i, n in row_bytes[own].items()}
        name = f"model.layers.{min(layouts)}"
        tokens = TokenRows(f"{name}.rows", layouts, [row_bytes[x] for x in others])
        found.append([tokens])
        if exact:
            layouts = {i: SimpleNamespace(row_bytes=n) for i, n in exact[own].items()}
            beside = [exact[x] for x in others]
            found[-1].append(
                ExactRows(f"{name}.exact", layouts, tokens, beside, num_sinks=4, window=9)
            )
    config = VllmConfig()
    config.cache_config.block_size = 16
    config.cache_config.kv_cache_layout = "LBNHC"
    config.model_config = SimpleNamespace(max_model_len=64, original_max_model_len=64)
    specs = [{x.name: x.get_kv_cache_spec(config) for x in of} for of in found]
    stages = get_kv_cache_configs(config, specs, [room] * 3)
    for layers, stage in zip(found, stages, strict=True):
        assert stage.num_blocks == room // (16 * 75)
        assert [group.layer_names for group in stage.kv_cache_groups] == [[x.name] for x in layers]
        assert {tensor.block_stride for tensor in stage.kv_cache_tensors} == {16 * 75}
    assert len({layers[0].get_attn_backend() for layers in found}) == 1


def test_specs_of_layers_stay_as_they_are() -> None:
    """vLLM customizes those of all layers, not only what it asks about alignment."""
    tokens, exact = _cached({1: 33, 5: 20}, 200)
    config = VllmConfig()
    config.cache_config.block_size = 64
    for layer in (tokens, exact):
        spec = layer.get_kv_cache_spec(config)
        assert layer.get_attn_backend().customize_spec(spec) is spec

"""Prefixes are shipped with a model, and read for no other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from cacheshrink_hybrid.engine import LLM
from cacheshrink_hybrid.engine.prefix_files import FILE_NAME, _content_digest
from cacheshrink_hybrid.errors import CacheFullError, CheckpointError, ConfigError, OutputError
from tests.engine.test_prefix_cache import batch, generated, prefixes_of
from tests.engine.test_prefix_reuse import MEMORY, SETTINGS, model_of, served, text

SYSTEM_PROMPT = text(150, 0)


def saved(model: PreTrainedModel, directory: Path) -> Path:
    prefixes = prefixes_of(model)
    prefixes.cache_for(torch.tensor([SYSTEM_PROMPT]))
    prefixes.save(directory)
    return directory / FILE_NAME


@pytest.mark.parametrize("name", SETTINGS)
def test_a_system_prompt_is_shipped(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    saved(model, tmp_path)
    prompt = SYSTEM_PROMPT + text(20, 1)
    inputs = batch(prompt)
    due = generated(model, inputs)
    with prefixes_of(model, prefixes=tmp_path) as prefixes:
        assert generated(model, inputs) == due
    assert prefixes.statistics.saved_tokens >= 149
    cold, warm = LLM(model, cache_memory=MEMORY), LLM(model, cache_memory=MEMORY, prefixes=tmp_path)
    assert served(warm, prompt) == served(cold, prompt)
    assert warm.statistics.prefixes.saved_tokens >= 149
    warm.store.check_integrity()


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    model, changed = model_of("bamba"), copy.deepcopy(model_of("bamba"))
    path = saved(model, tmp_path)
    with torch.no_grad():
        changed.lm_head.weight[3, 3] += 1
    for other, what in ((changed, "other weights"), (model_of("llama"), "lays its cache out")):
        with pytest.raises(CheckpointError, match=what):
            prefixes_of(other, prefixes=tmp_path)
    whole = path.read_bytes()
    for data, what in (
        (whole[: len(whole) // 2], "cannot be read"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), "saved with other content"),
        (b"", "cannot be read"),
    ):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=what) as caught:
            prefixes_of(model, prefixes=tmp_path)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    save_file(load_file(path), tmp_path / "foreign.safetensors")
    (tmp_path / "foreign.safetensors").replace(path)
    with pytest.raises(CheckpointError, match="format None"):
        prefixes_of(model, prefixes=tmp_path)
    with pytest.raises(CheckpointError, match=f"has no {FILE_NAME}"):
        prefixes_of(model, prefixes=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "spoil", "fault"),
    [
        ("tokens", lambda x: x.to(torch.bfloat16), "tokens is torch.bfloat16 of"),
        ("row_frames", lambda x: x - 2**40, "a frame is named that is none of"),
        ("nodes", lambda x: x * 2**40, "holds no prefixes: "),
    ],
)
def test_files_that_were_made_by_hand_are_refused(
    name: str, spoil: Callable[[Tensor], Tensor], fault: str, tmp_path: Path
) -> None:
    """Their digests are right, and what they say is not."""
    model = model_of("llama")
    path = saved(model, tmp_path)
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    tensors = load_file(path)
    tensors[name] = spoil(tensors[name])
    save_file(tensors, path, metadata=about | {"content": _content_digest(tensors)})
    for load in (partial(prefixes_of, model), partial(LLM, model, cache_memory=MEMORY)):
        with pytest.raises(CheckpointError, match=fault) as caught:
            load(prefixes=tmp_path)
        assert "\n" not in str(caught.value)


def test_too_little_memory_or_none_to_use_it(tmp_path: Path) -> None:
    model = model_of("bamba")
    saved(model, tmp_path)
    layout = prefixes_of(model).store.layout
    memory = (layout.frames_for(60) + 1) * layout.frame_bytes
    with pytest.raises(CacheFullError, match="give it more than"):
        prefixes_of(model, max_bytes=memory, prefixes=tmp_path)
    with pytest.raises(ConfigError, match="leave prefix_cache=True"):
        LLM(model, cache_memory=MEMORY, prefix_cache=False, prefixes=tmp_path)


def test_a_save_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    model = model_of("llama")
    path = saved(model, tmp_path)
    before = path.read_bytes()
    with pytest.raises(OutputError):
        prefixes_of(model).save(path)  # a file
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [FILE_NAME]

"""What the pool has no room for comes back from the host's memory and from a disk."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from cacheshrink_hybrid import PrefixCache
from cacheshrink_hybrid.engine import LLM
from cacheshrink_hybrid.engine.prefix_disk import FRAMES, INDEX
from cacheshrink_hybrid.engine.prefix_files import save_prefixes
from cacheshrink_hybrid.errors import (
    CacheFullError,
    CacheShrinkWarning,
    CheckpointError,
    ConfigError,
    OutputError,
)
from tests.engine.test_prefix_reuse import DENSE, MEMORY, model_of, served, text

NAMES = ("llama", "bamba", "gemma3_text")
PLAIN: dict[str, Any] = {"cache_memory": MEMORY, "prefill_chunk": 64, "backend": "torch"}


def engine(name: str, **settings: Any) -> LLM:
    return LLM(model_of(name), **{**PLAIN, "prefix_placement": DENSE, **settings})


def saved(llm: LLM, prompt: list[int]) -> int:
    """Tokens that a prompt took over; the answer is that of a cold engine."""
    cold = LLM(llm.runner.model, **PLAIN, prefix_cache=False)
    before = llm.statistics.prefixes.saved_tokens
    assert served(llm, prompt) == served(cold, prompt)
    llm.store.check_integrity()
    return llm.statistics.prefixes.saved_tokens - before


def emptied(llm: LLM) -> LLM:
    """As if others had needed the whole pool."""
    llm.store.prefixes.make_free(llm.store.pool.num_frames)
    assert llm.store.prefixes.num_tokens == 0
    return llm


@pytest.mark.parametrize("name", NAMES)
def test_answers_after_a_fall_are_those_of_a_cold_engine(name: str) -> None:
    llm = engine(name, prefix_host_memory=MEMORY)
    shared = text(100, 0)
    assert saved(llm, shared + text(10, 1)) == 0
    emptied(llm)
    due = 100 if name == "llama" else 64
    assert saved(llm, shared + text(10, 2)) == due
    (host,) = llm.statistics.prefixes.tiers
    assert (host.name, host.hits, host.restored_tokens) == ("host", 1, due)
    llm.reset_prefix_cache()
    assert llm.statistics.prefixes.tiers[0].held_bytes == 0


def on_disk(name: str, directory: Path, **settings: Any) -> LLM:
    return engine(name, prefix_disk=directory, prefix_disk_memory="16MiB", **settings)


@pytest.mark.parametrize("name", NAMES)
def test_a_directory_outlives_its_engine(name: str, tmp_path: Path) -> None:
    shared, due = text(100, 0), 100 if name == "llama" else 64
    llm = on_disk(name, tmp_path)
    served(llm, shared + text(10, 1))
    emptied(llm)
    assert not (tmp_path / INDEX).exists()
    with pytest.raises(OutputError, match="in use by another cache"):
        on_disk(name, tmp_path)
    del llm
    gc.collect()
    assert (tmp_path / INDEX).is_file()
    again = on_disk(name, tmp_path, prefix_host_memory=MEMORY)
    assert saved(again, shared + text(10, 2)) == due
    host, disk = again.statistics.prefixes.tiers
    assert (host.hits, disk.hits, disk.restored_tokens) == (0, 1, due)


def left_by(name: str, directory: Path) -> None:
    llm = on_disk(name, directory)
    served(llm, text(110, 0))
    emptied(llm)
    del llm
    gc.collect()


def test_directories_of_others_are_refused(tmp_path: Path) -> None:
    left_by("llama", tmp_path)
    frame_bytes = engine("llama").store.layout.frame_bytes
    with pytest.raises(CheckpointError, match="lays its cache out, or keeps states, otherwise"):
        on_disk("gemma3_text", tmp_path)
    whole = (tmp_path / INDEX).read_bytes()
    (tmp_path / INDEX).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="saved with other content"):
        on_disk("llama", tmp_path)
    (tmp_path / INDEX).write_bytes(whole)
    with pytest.raises(CacheFullError, match="give at least"):
        engine("llama", prefix_disk=tmp_path, prefix_disk_memory=2 * frame_bytes)
    assert saved(on_disk("llama", tmp_path), text(110, 0)) == 109


def test_what_a_killed_process_left_is_skipped(tmp_path: Path) -> None:
    left_by("llama", tmp_path)
    (tmp_path / INDEX).unlink()
    with pytest.warns(CacheShrinkWarning, match="a process that was killed; it begins empty"):
        llm = on_disk("llama", tmp_path)
    assert saved(llm, text(110, 0)) == 0


def test_damaged_frames_are_forgotten(tmp_path: Path) -> None:
    left_by("llama", tmp_path)
    llm = on_disk("llama", tmp_path)
    frame_bytes = llm.store.layout.frame_bytes
    with open(tmp_path / FRAMES, "r+b") as file:
        file.seek(frame_bytes + 5)
        byte = file.read(1)[0]
        file.seek(frame_bytes + 5)
        file.write(bytes([byte ^ 255]))
    with pytest.warns(CacheShrinkWarning, match="the prefixes on the disk are forgotten"):
        assert saved(llm, text(110, 0)) == 0
    assert llm.statistics.prefixes.tiers[0].held_bytes == 0


def test_caches_of_generate_are_restored_as_well() -> None:
    ids = torch.tensor([text(200, 0)])
    kept = PrefixCache(model_of("bamba"), max_bytes=MEMORY, prefill_chunk=64, host_memory=MEMORY)
    kept.cache_for(ids)
    kept.store.prefixes.make_free(kept.store.pool.num_frames)
    assert kept.cache_for(ids).get_seq_length() == 199
    assert kept.statistics.tiers[0].restored_tokens == kept.statistics.saved_tokens >= 64


@pytest.mark.parametrize("name", ["bamba", "llama"])
def test_kept_states_have_a_code(name: str, tmp_path: Path) -> None:
    """Of models without states, nothing is another."""
    live, coded = (engine(name, prefix_state_dtype=code) for code in ("live", "int8"))
    for llm in (live, coded):
        assert saved(llm, text(150, 0)) == 0
        assert saved(llm, text(150, 0)) == (149 if name == "llama" else 128)
    now = [llm.statistics.prefixes for llm in (live, coded)]
    assert now[0].checkpoints == now[1].checkpoints
    if name == "llama":
        assert now[0] == now[1] and live.store.prefixes.digest == coded.store.prefixes.digest
        return
    assert now[1].held_bytes < now[0].held_bytes
    path = tmp_path / "kept"
    save_prefixes(path, coded.store, coded.runner.model)
    again = engine(name, prefix_state_dtype="int8", prefixes=path)
    assert again.statistics.prefixes.checkpoints == now[1].checkpoints
    with pytest.raises(CheckpointError, match="or keeps states, otherwise"):
        engine(name, prefixes=path)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"prefix_host_memory": MEMORY, "prefix_cache": False}, "needs a prefix cache"),
        ({"prefix_disk": "x", "prefix_cache": False}, "needs a prefix cache"),
        ({"prefix_host_memory": "much"}, "no amount of memory"),
        ({"prefix_disk": "x", "prefix_disk_memory": -1}, "prefix_disk_memory=-1 must be"),
        ({"prefix_state_dtype": "int4"}, "prefix_state_dtype='int4' is unknown"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        engine("llama", **settings)


def test_memory_for_less_than_a_frame(tmp_path: Path) -> None:
    with pytest.raises(CacheFullError, match="hold 0 frames"):
        engine("llama", prefix_host_memory=100)


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="prefixes cannot be kept in"):
        on_disk("llama", tmp_path / "file")
    with pytest.raises(OutputError, match="MiB are needed; free some space"):
        engine("llama", prefix_disk=tmp_path / "disk", prefix_disk_memory=1 << 60)


def test_unknown_settings_are_named_with_what_is_known() -> None:
    with pytest.raises(ConfigError, match=r"prefix_disc; known are .*is prefix_disk meant by"):
        engine("llama", prefix_disc="x")

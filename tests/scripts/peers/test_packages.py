"""Peers by their packages, where these are installed: each reads back what its cache holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cacheshrink_hybrid.checkpoint.source_model import load_source
from scripts.peers import llama_cpp
from scripts.peers.lineup import all_methods, installed
from scripts.peers.measuring import held_at, measured
from tests.gguf_files import SIZES, write_tiny_gguf
from tests.models import random_ids
from tests.scripts.peers.small_llama import small_llama, subject
from tests.texts import word_tokenizer

METHODS = {
    method.name: method
    for method in all_methods([4])
    if method.package is not None and not method.name.startswith("llama.cpp")
}
BYTES_16BIT = 5 * 2 * 32 * 2
# Of 32 numbers, by ggml's types.
BLOCK_BYTES = {"f16": 64, "q8_0": 34, "q5_1": 24, "q4_0": 18}


@pytest.mark.slow(group="peer packages")
@pytest.mark.parametrize("name", METHODS)
def test_a_peer_reads_what_it_holds(name: str, tmp_path: Path) -> None:
    method = METHODS[name]
    if installed(method) is None:
        pytest.skip(f"not installed: pip install {method.package}")
    small_llama().save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    windows = list(random_ids(1, 256))
    record = measured(method.start(subject(tmp_path)), windows, 64)
    whole = measured(method.start(subject(tmp_path)), windows, 256)
    source = measured(all_methods([4])[0].start(subject()), windows, 64)
    assert held_at(record["held"], 256).at_16bit < 256 * BYTES_16BIT
    (loss,), (expected,) = record["losses"], source["losses"]
    assert loss != expected
    if method.convention == "raw":  # in one chunk nothing is read back
        assert whole["losses"] == pytest.approx(source["losses"], rel=1e-5)
    if method.convention == "read":
        coded = not name.startswith("cacheshrink")  # codes are steps, which rounding may cross
        near = {"rel": 1e-2} if coded else {"rel": 1e-5}
        assert whole["losses"] == pytest.approx(record["losses"], **near)


@pytest.mark.slow(group="peer packages")
def test_llama_cpp_holds_its_blocks(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    if installed(all_methods([4])[-1]) is None:
        pytest.skip(f"not installed: pip install {llama_cpp.PACKAGE}")
    write_tiny_gguf(tmp_path / "tiny.gguf")
    given = replace(subject(), gguf=tmp_path / "tiny.gguf", window_length=128)
    windows = list(random_ids(2, 128))
    losses = {}
    for method in llama_cpp.methods():
        record = measured(method.start(given), windows, 32)
        losses[method.name] = record["losses"]
        blocks = SIZES["layers"] * 2  # keys and values of one head of 32 channels
        expected = 128 * blocks * BLOCK_BYTES[method.name.split()[1]]
        assert 0 <= held_at(record["held"], 128).at_16bit - expected < 100  # of headers
    model, _ = load_source(tmp_path / "tiny.gguf")
    with torch.inference_mode():
        logits = model(windows[0][None]).logits[0, :-1]
    exact = torch.nn.functional.cross_entropy(logits, windows[0][1:]).item()
    assert losses[llama_cpp.BASE][0] == pytest.approx(exact, rel=0.01)
    assert losses["llama.cpp q4_0"] != losses[llama_cpp.BASE]

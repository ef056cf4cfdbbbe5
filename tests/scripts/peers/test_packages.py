"""Peers by their packages, where these are installed: each reads back what its cache holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.peers.lineup import all_methods, installed
from scripts.peers.measuring import held_at, measured
from tests.models import random_ids
from tests.scripts.peers.small_llama import small_llama, subject
from tests.texts import word_tokenizer

METHODS = {
    method.name: method
    for method in all_methods([4])
    if method.package is not None and not method.name.startswith("llama.cpp")
}
BYTES_16BIT = 5 * 2 * 32 * 2


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
        assert whole["losses"] == pytest.approx(record["losses"], rel=1e-2)

"""The documentation text and its split; the shipped demo model."""

import ast
import sysconfig
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cacheshrink_hybrid.calibration.exercises import RECALL_KINDS, RecallKind, recall_exercises
from cacheshrink_hybrid.demo import corpus, model_path


def paragraphs(documents: list[str]) -> set[str]:
    return {part for document in documents for part in document.split("\n\n") if len(part) > 60}


def test_split_is_disjoint() -> None:
    assert not paragraphs(corpus.training_text()) & paragraphs(corpus.held_out_text())


def test_split_is_by_module() -> None:
    source = Path(sysconfig.get_path("stdlib"), "argparse.py").read_bytes()
    docstring = corpus.normalize(ast.get_docstring(ast.parse(source)) or "")
    assert any(docstring[:200] in document for document in corpus.held_out_text())
    assert not any(docstring[:200] in document for document in corpus.training_text())
    assert corpus.is_held_out("decimal") and corpus.is_held_out("_pydecimal")
    assert not corpus.is_held_out("pydoc")


def test_sizes() -> None:
    held_out, training = (
        sum(map(len, part)) for part in (corpus.held_out_text(), corpus.training_text())
    )
    assert training > 1_000_000
    assert 0.1 < held_out / (held_out + training) < 0.2


@pytest.mark.slow
def test_reading_is_deterministic() -> None:
    first = corpus.training_text()
    corpus._documents.cache_clear()
    assert corpus.training_text() == first


def test_documents_are_plain_ascii() -> None:
    characters = set().union(*corpus.training_text(), *corpus.held_out_text())
    assert all(c == "\n" or " " <= c <= "~" for c in characters)
    assert corpus.normalize("caf\u00e9\t\u201cx\u201d \u2026\r\n") == 'cafe    "x" ...\n'


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(model_path())


def test_model_is_small_and_finite(model: torch.nn.Module) -> None:
    assert 3_000_000 <= sum(p.numel() for p in model.parameters()) <= 5_000_000
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert sum(f.stat().st_size for f in model_path().iterdir()) < 8_000_000


def test_tokenizer_round_trip(tokenizer) -> None:
    text = corpus.held_out_text()[0][:5000]
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id and len(ids) == 1 + len(text)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("kind", RECALL_KINDS)
def test_model_recalls(model: torch.nn.Module, tokenizer, kind: RecallKind) -> None:
    hits = []
    for exercise in recall_exercises(tokenizer, kind=kind, distance=256, count=6, seed=1):
        ids = torch.tensor([exercise.token_ids])
        answers = torch.tensor(exercise.answer_positions)
        with torch.no_grad():
            predicted = model(ids, use_cache=False).logits[0, answers - 1].argmax(-1)
        hits += (predicted == ids[0, answers]).tolist()
    assert sum(hits) / len(hits) >= 0.85

"""What lm-eval asks is answered from the cache, with the numbers of a single pass where nothing is
lost in it."""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import dataclass

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cacheshrink_hybrid.errors import CacheShrinkWarning, ConfigError
from cacheshrink_hybrid.evaluation.live_model import LiveModel, lm_eval_model
from tests.engine.tokenizers import byte_level_tokenizer
from tests.families.tiny_configs import tiny_model
from tests.models import logits_of, pair
from tests.texts import CHAT, TEXTS, chat_tokenizer, word_tokenizer

NO_LM_EVAL = "lm-eval is an extra of its own"
PAIRS = [
    ("one two three", " four five"),
    ("six seven", " the cat"),
    ("one two three", " nine"),
    ("one two three ", "ten a mat"),
    ("", "the cat sat"),
]


@dataclass(frozen=True)
class Asked:
    """As lm-eval's `Instance`, as far as it matters."""

    args: tuple


def asked(*rows: tuple) -> list[Asked]:
    return [Asked(row) for row in rows]


def one_pass(model: PreTrainedModel, ids: list[int], first: int) -> float:
    """Log-probability of all tokens from position `first` on, without a cache."""
    logits = logits_of(model, torch.tensor([ids]))[0, first - 1 : -1].double()
    due = torch.tensor(ids[first:])[:, None]
    return float(torch.log_softmax(logits, -1).gather(1, due).sum())


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("chunk_length", [1, 3, 64])
@pytest.mark.parametrize("case", ["llama", "granitemoehybrid", "jamba"])
def test_continuations_of_an_exact_model(case: str, chunk_length: int) -> None:
    model, tokenizer = tiny_model(case), word_tokenizer()
    found = LiveModel(model, tokenizer, chunk_length).loglikelihood(asked(*PAIRS))
    for (context, continuation), (value, greedy) in zip(PAIRS, found, strict=True):
        before = ids_of(tokenizer, context) or [tokenizer.bos_token_id]
        ids = before + ids_of(tokenizer, continuation)
        assert value == pytest.approx(one_pass(model, ids, len(before)), abs=1e-4)
        likeliest = logits_of(model, torch.tensor([ids]))[0, len(before) - 1 : -1].argmax(-1)
        assert greedy == (likeliest.tolist() == ids[len(before) :])


@pytest.mark.parametrize("case", ["qwen3_next", "mamba2"])
def test_what_coded_states_cost_between_passes_is_seen(case: str) -> None:
    """They are coded as often as in decoding, where one pass codes them once."""
    model = pair(case, state_dtype="int8", replay_length=1).converted
    tokenizer = word_tokenizer()
    context, continuation = TEXTS[0], " " + TEXTS[4]
    ((value, _),) = LiveModel(model, tokenizer, 1).loglikelihood(asked((context, continuation)))
    ids = ids_of(tokenizer, context + continuation)
    assert abs(value - one_pass(model, ids, len(ids_of(tokenizer, context)))) > 1e-3


def test_exact_tokens_are_read_from_their_copies() -> None:
    """A single pass with the cache that transformers makes is refused for such a model."""
    model = pair("llama", ratio=4.0, cache_bits="auto", exact_sinks=2, exact_window=4).converted
    coded = pair("llama", ratio=4.0, cache_bits="auto").converted
    rows = asked((TEXTS[0], " " + TEXTS[4]))
    values = [
        LiveModel(one, word_tokenizer(), chunk).loglikelihood(rows)[0][0]
        for one, chunk in ((model, 1), (model, 5), (coded, 5))
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-4)
    assert abs(values[0] - values[2]) > 1e-3


def test_whole_texts_begin_once() -> None:
    model, tokenizer = tiny_model("llama", vocab_size=300), byte_level_tokenizer()
    reader = LiveModel(model, tokenizer, 4)
    ids = tokenizer("Once upon a time").input_ids
    assert ids[0] == tokenizer.bos_token_id
    due = one_pass(model, ids, 1)
    found = reader.loglikelihood_rolling(asked(("Once upon a time",), ("<s>Once upon a time",)))
    assert found == pytest.approx([due, due], abs=1e-4)


def test_long_texts_are_read_in_windows() -> None:
    """Of 7 positions, a text of 17 tokens: 7 after the first token, 7 after one, 3 after 5."""
    tokenizer = word_tokenizer()
    model = copy.deepcopy(tiny_model("llama"))
    model.config.max_position_embeddings = 7
    ids = ids_of(tokenizer, TEXTS[0])[:17]
    text = tokenizer.decode(ids)
    (found,) = LiveModel(model, tokenizer, 3).loglikelihood_rolling(asked((text,)))
    windows = [([tokenizer.bos_token_id, *ids[:7]], 1), (ids[6:14], 1), (ids[9:17], 5)]
    assert found == pytest.approx(sum(one_pass(model, *window) for window in windows), abs=1e-4)


def test_answers_end_at_stops_and_limits() -> None:
    model, tokenizer = tiny_model("llama", vocab_size=22), word_tokenizer()
    reader = LiveModel(model, tokenizer)
    prompt = torch.tensor([ids_of(tokenizer, TEXTS[0])])
    new = model.generate(prompt, max_new_tokens=8, do_sample=False)[0, prompt.shape[1] :]
    whole = tokenizer.decode(new, skip_special_tokens=True)
    words = whole.split()
    (found,) = reader.generate_until(asked((TEXTS[0], {"max_gen_toks": 8, "until": []})))
    assert found == whole
    stop = {"until": words[3], "max_gen_toks": 8, "do_sample": False, "temperature": 0.0}
    (found,) = reader.generate_until(asked((TEXTS[0], stop)))
    assert found == whole[: whole.index(words[3])]


@pytest.mark.parametrize(
    "settings", [{"do_sample": True}, {"temperature": 0.7}, {"top_p": 0.9}, {"num_beams": 2}]
)
def test_other_generation_is_refused(settings: dict) -> None:
    reader = LiveModel(tiny_model("llama"), word_tokenizer())
    with pytest.raises(ConfigError, match=f"with {next(iter(settings))}=.* is not offered, only"):
        reader.generate_until(asked((TEXTS[0], settings)))


def test_contexts_beyond_the_positions_are_cut() -> None:
    tokenizer = word_tokenizer()
    model = copy.deepcopy(tiny_model("llama"))
    model.config.max_position_embeddings = 6
    reader = LiveModel(model, tokenizer)
    with pytest.warns(CacheShrinkWarning, match=r"of 19 tokens is cut on the left: 2 more .* 6 po"):
        ((value, _),) = reader.loglikelihood(asked((TEXTS[0], " one two")))
    ids = ids_of(tokenizer, TEXTS[0] + " one two")
    assert len(ids) == 21
    assert value == pytest.approx(one_pass(model, ids[-7:], 5), abs=1e-4)
    with pytest.raises(ConfigError, match=r"19 tokens are to follow .* the model has 6 positions"):
        reader.loglikelihood(asked(("one", " " + TEXTS[0])))


def test_chats() -> None:
    reader = LiveModel(tiny_model("llama"), chat_tokenizer())
    assert reader.apply_chat_template(CHAT).endswith("user: four\nassistant:")
    assert reader.chat_template(True) == chat_tokenizer().chat_template
    assert reader.chat_template(False) is None
    with pytest.raises(ConfigError, match="has no chat template"):
        LiveModel(tiny_model("llama"), word_tokenizer()).chat_template(True)


def test_without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"is not installed; pip install .*\[lm-eval\]"):
        lm_eval_model(tiny_model("llama"), word_tokenizer())


def test_lm_eval_agrees_where_one_pass_is_enough() -> None:
    pytest.importorskip("lm_eval", reason=NO_LM_EVAL)
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = tiny_model("llama"), word_tokenizer()
    ours = lm_eval_model(model, tokenizer, 3)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    assert isinstance(ours, LM)
    rows = [
        Instance(request_type="loglikelihood", doc={}, arguments=row, idx=i)
        for i, row in enumerate(PAIRS)
    ]
    texts = [
        Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=i)
        for i, text in enumerate(TEXTS[:3])
    ]
    settings = {"until": ["cat"], "max_gen_toks": 6, "do_sample": False}
    questions = [
        Instance(request_type="generate_until", doc={}, arguments=(text, settings), idx=i)
        for i, text in enumerate(TEXTS[:3])
    ]
    for one, other in zip(ours.loglikelihood(rows), theirs.loglikelihood(rows), strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-4)
        assert one[1] == other[1]
    assert ours.loglikelihood_rolling(texts) == pytest.approx(
        theirs.loglikelihood_rolling(texts), abs=1e-4
    )
    assert ours.generate_until(questions) == theirs.generate_until(questions)

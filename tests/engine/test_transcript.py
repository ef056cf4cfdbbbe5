"""The text of a request is what its tokens add to the decoded prompt, and is never taken back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch

from cacheshrink_hybrid.engine.transcript import INCOMPLETE, LONGEST_WINDOW, Decoder, Transcript
from tests.engine.tokenizers import TEXTS, TOKENIZERS
from tests.texts import TEXT


def texts_of(name: str) -> Sequence[str]:
    return (TEXT,) if name == "words" else TEXTS


def streamed(transcript: Transcript, tokens: Sequence[int]) -> list[str]:
    """What a stream shows after each token, and at the end."""
    shown = [
        transcript.text_after(tokens[:count], finished=False) for count in range(len(tokens) + 1)
    ]
    return [*shown, transcript.text_after(tokens, finished=True)]


def whole(name: str, tokens: Sequence[int]) -> str:
    return str(TOKENIZERS[name]().decode(list(tokens), skip_special_tokens=True))


def random_tokens(name: str, count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, len(TOKENIZERS[name]()), (count,), generator=generator).tolist()


@pytest.mark.parametrize("number", range(len(TEXTS)))
@pytest.mark.parametrize("name", TOKENIZERS)
def test_prompt_and_text_are_the_whole(name: str, number: int) -> None:
    texts = texts_of(name)
    tokens = TOKENIZERS[name]()(texts[number % len(texts)]).input_ids
    for size in range(1, len(tokens)):
        prompt, rest = tokens[:size], tokens[size:]
        shown = streamed(Transcript(Decoder(TOKENIZERS[name]()), prompt), rest)
        begin = whole(name, prompt)
        if not begin.endswith(INCOMPLETE):  # the character is the output's, and takes bytes along
            assert begin + shown[-1] == whole(name, tokens)
        assert whole(name, tokens).endswith(shown[-1])
        assert all(later.startswith(text) for text, later in pairwise(shown))
        assert INCOMPLETE not in shown[-1]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", TOKENIZERS)
def test_any_tokens_are_shown_once(name: str, seed: int) -> None:
    """Also bytes that are no characters."""
    tokens = random_tokens(name, 150, seed)
    shown = streamed(Transcript(Decoder(TOKENIZERS[name]()), [1]), tokens)
    assert all(later.startswith(text) for text, later in pairwise(shown))
    if name != "byte fallback":  # which turns good bytes beside bad ones into bad ones
        assert shown[-1] == whole(name, tokens)


def test_bytes_of_a_character_behind_others() -> None:
    """A run of bytes decodes as a whole or not at all, yet what was shown stays."""
    tokenizer = TOKENIZERS["byte fallback"]()
    tokens = tokenizer("世界世界", add_special_tokens=False).input_ids[1:]
    shown = streamed(Transcript(Decoder(tokenizer), [1]), tokens[:-1])
    assert shown[-2:] == ["世界世", "世界世" + 2 * INCOMPLETE]
    assert streamed(Transcript(Decoder(tokenizer), [1]), tokens)[-1] == "世界世界"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_special_tokens_are_silent(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    tokens = tokenizer(texts_of(name)[0]).input_ids
    prompt, rest = [tokenizer.bos_token_id] * 9 + tokens[:6], tokens[6:]
    loud = [token for one in rest for token in (one, tokenizer.eos_token_id)]
    quiet = Transcript(Decoder(tokenizer), prompt).text_after(rest, finished=True)
    assert Transcript(Decoder(tokenizer), prompt).text_after(loud, finished=True) == quiet


@pytest.mark.parametrize("name", TOKENIZERS)
def test_special_tokens_that_are_asked_for(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    tokens = tokenizer(texts_of(name)[0], add_special_tokens=False).input_ids
    loud = [*tokens[:4], tokenizer.eos_token_id, *tokens[4:], tokenizer.eos_token_id]
    decoder = Decoder(tokenizer, skip_special_tokens=False)
    shown = streamed(Transcript(decoder, [tokenizer.bos_token_id]), loud)
    assert shown[-1].count(tokenizer.eos_token) == 2
    assert all(later.startswith(text) for text, later in pairwise(shown))
    assert tokenizer.bos_token + shown[-1] == tokenizer.decode([tokenizer.bos_token_id, *loud])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_token_costs_the_decoding_of_a_few(name: str) -> None:
    decoded = []

    class Counting(Decoder):
        def __call__(self, tokens: Sequence[int]) -> str:
            decoded.append(len(tokens))
            return super().__call__(tokens)

    for tokens in (
        TOKENIZERS[name]()(texts_of(name)[-1] * 20).input_ids,
        random_tokens(name, 1500, seed=0),
        [random_tokens(name, 1, seed=1)[0]] * 1500,
    ):
        decoded.clear()
        Transcript(Counting(TOKENIZERS[name]()), [1]).text_after(tokens, finished=True)
        assert sum(decoded) < LONGEST_WINDOW * len(tokens)


@pytest.mark.parametrize(
    "stop", [" girl", "girl named", "e", "little girl named Lily.", "y.", "zz"]
)
@pytest.mark.parametrize("name", ["byte fallback", "byte level", "characters"])
def test_stop_strings_end_the_text_and_are_never_shown(name: str, stop: str) -> None:
    tokenizer = TOKENIZERS[name]()
    tokens = tokenizer(TEXTS[0]).input_ids
    prompt, rest = tokens[:9], tokens[9:]
    text = Transcript(Decoder(tokenizer), prompt).text_after(rest, finished=True)
    transcript = Transcript(Decoder(tokenizer), prompt, (stop, "never"))
    found = next((n for n in range(len(rest) + 1) if transcript.extend(rest[:n])), None)
    assert (found is None) == (stop not in text)
    shown = streamed(Transcript(Decoder(tokenizer), prompt, (stop, "never")), rest[:found])
    assert shown[-1] == text.partition(stop)[0]
    assert all(later.startswith(part) for part, later in pairwise(shown))
    if found is not None:
        before = Transcript(Decoder(tokenizer), prompt).text_after(rest[: found - 1], finished=True)
        assert stop not in before


def test_the_first_of_several_stop_strings_counts() -> None:
    tokenizer = TOKENIZERS["characters"]()
    tokens = tokenizer("abcdef", add_special_tokens=False).input_ids
    for stops, due in ((("cd", "bcd"), "a"), (("d", "cdef"), "abc"), (("abcdefg",), "abcdef")):
        shown = streamed(Transcript(Decoder(tokenizer), [1], stops), tokens)
        assert shown[-1] == due


@pytest.mark.parametrize("name", ["byte fallback", "byte level", "characters"])
def test_stop_strings_that_are_part_of_the_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    tokens = tokenizer(TEXTS[0]).input_ids
    decoder, prompt, rest = Decoder(tokenizer), tokens[:9], tokens[9:]
    text = Transcript(decoder, prompt).text_after(rest, finished=True)
    stop = text[len(text) // 2 :][:5]
    shown = streamed(Transcript(decoder, prompt, (stop,), include_stop=True), rest)
    assert shown[-1] == text.partition(stop)[0] + stop
    assert all(later.startswith(part) for part, later in pairwise(shown))


def test_stop_strings_count_behind_the_least_number_of_tokens() -> None:
    tokenizer = TOKENIZERS["characters"]()
    tokens = tokenizer("abcabcabc", add_special_tokens=False).input_ids
    for least, due in ((0, "a"), (1, "a"), (2, "abca"), (3, "abca"), (5, "abcabca"), (9, None)):
        transcript = Transcript(Decoder(tokenizer), [1], ("bc",), min_tokens=least)
        found = next((n for n in range(10) if transcript.extend(tokens[:n])), None)
        assert (found is None) == (due is None)
        shown = streamed(
            Transcript(Decoder(tokenizer), [1], ("bc",), min_tokens=least), tokens[:found]
        )
        assert shown[-1] == ("abcabcabc" if due is None else due)
        assert all(later.startswith(part) for part, later in pairwise(shown))


def test_silent_tokens() -> None:
    tokenizer = TOKENIZERS["characters"]()
    a, b = tokenizer("ab", add_special_tokens=False).input_ids
    transcript = Transcript(Decoder(tokenizer), [a], silent=[a])
    assert transcript.text_after([b, b, a], finished=True) == "bb"

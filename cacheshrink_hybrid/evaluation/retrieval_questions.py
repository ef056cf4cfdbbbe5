"""Texts that hold codes, and questions for them, as the tokens that a model reads.

A fact gives a word a random code of four digits. In task "needle" a few facts stand among the
sentences of a running text, in task "keys" the text is a list of facts, one a line. A conversation
shows the text, answers some questions as examples, and asks one more: the tokens of its code are
what a model is scored on. Tokenizers without a chat template get the same as plain text.
"""

from __future__ import annotations

import itertools
import random
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ..calibration.exercises import leading_special_tokens
from ..chat_template import chat_text
from ..errors import ConfigError

CODES = range(1000, 10_000)
SENTENCE_WORDS = 40
"""Words of running text after which a fact may stand, where no sentence ends before."""
_KEY = re.compile(r"\b[^\W\d_]{4,9}\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalTask:
    """How facts look, and what stands around them.

    Attributes:
        introduction: before the text.
        fact: of `{key}`, up to its code. An answer begins with the same words.
        separator: behind a fact, and between sentences.
        in_running_text: whether the text is sentences, or more facts.
        examples: questions that the conversation answers before the one that counts.
    """

    introduction: str
    fact: str
    separator: str
    in_running_text: bool
    examples: int

    def stated(self, key: str, code: str) -> str:
        return f"{self.fact.format(key=key)} {code}"


TASKS = {
    "needle": RetrievalTask(
        introduction="Remember the codes that this text mentions.",
        fact="The code of {key} is",
        separator=". ",
        in_running_text=True,
        examples=1,
    ),
    "keys": RetrievalTask(
        introduction="Here is a list of codes.",
        fact="The code of {key}:",
        separator="\n",
        in_running_text=False,
        examples=3,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a model is asked of a text.

    Attributes:
        prompt_ids: all tokens before the answer, those of the text included.
        answer_ids: of the code.
        code: the code, as text.
        depth: where in the text its fact stands, between 0 and 1.
        distance: tokens from the beginning of its fact to the end of the prompt.
    """

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    code: str
    depth: float
    distance: int


def retrieval_texts(
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    length: int,
    documents: Sequence[str],
    *,
    num_texts: int = 4,
    num_questions: int = 2,
    seed: int = 0,
) -> list[tuple[Question, ...]]:
    """The questions of each of `num_texts` texts, the same for the same arguments.

    Args:
        task: one of `TASKS`.
        length: most tokens of a prompt and its answer; texts are the longest that fit.
        documents: running text, whose words are what has a code.
        num_questions: of one text; each asks for a fact in a part of its own of it.

    Raises:
        ConfigError: an unknown task; a length at which nothing fits; documents with too few words.
    """
    if task not in TASKS:
        raise ConfigError(f"task={task!r} is unknown; choose from {', '.join(TASKS)}")
    found = []
    for number in range(num_texts):
        rng = random.Random(f"{task} {length} {seed} {number}")
        drafted = _draft(TASKS[task], documents, num_questions, length, rng)
        found.append(_longest(tokenizer, drafted, length))
    return found


@dataclass(frozen=True, slots=True)
class _Draft:
    """All that is random in a text, of which a shorter or a longer one can be made.

    Attributes:
        asked: (key, code) of the facts that questions are about, those of the examples first.
        depths: of these, between 0 and 1.
        filler: what stands around them, from the beginning on.
    """

    task: RetrievalTask
    asked: list[tuple[str, str]]
    depths: list[float]
    filler: list[str]

    def text(self, size: int) -> str:
        """With `size` pieces of filler."""
        pieces = self.filler[:size]
        facts = zip(self.depths, self.asked, strict=True)
        for depth, (key, code) in sorted(facts, reverse=True):
            pieces.insert(int(depth * (size + 1)), self.task.stated(key, code))
        return self.task.separator.join(pieces)


def _draft(
    task: RetrievalTask,
    documents: Sequence[str],
    num_questions: int,
    length: int,
    rng: random.Random,
) -> _Draft:
    words = {word for text in documents for word in _KEY.findall(text) if word.islower()}
    keys = rng.sample(sorted(words), len(words))
    codes = map(str, rng.sample(CODES, len(CODES)))
    facts = list(zip(keys, codes, strict=False))
    num_asked = task.examples + num_questions
    if len(facts) < num_asked:
        raise ConfigError(
            f"the text has {len(facts)} different lower-case words of 4 to 9 letters, and "
            f"{num_asked} are to have codes; give more text, or ask fewer questions"
        )
    parts = rng.sample(range(num_asked), num_asked)
    depths = [(part + rng.random()) / num_asked for part in parts]
    if task.in_running_text:  # every sentence has a token
        filler = list(itertools.islice(_sentences(documents, rng), length))
    else:
        filler = [task.stated(*fact) for fact in facts[num_asked:]]
    return _Draft(task, facts[:num_asked], depths, filler)


def _sentences(documents: Sequence[str], rng: random.Random) -> Iterator[str]:
    """Running text without end: the documents in some order, again and again, each from some
    sentence on."""
    for document in itertools.cycle(rng.sample(documents, len(documents))):
        sentences = re.split(r"(?<=[.!?])\s+", " ".join(document.split()))
        first = rng.randrange(len(sentences))
        for sentence in sentences[first:] + sentences[:first]:
            words = sentence.rstrip(".!?").split()
            for start in range(0, len(words), SENTENCE_WORDS):
                yield " ".join(words[start : start + SENTENCE_WORDS])


def _longest(
    tokenizer: PreTrainedTokenizerBase, draft: _Draft, length: int
) -> tuple[Question, ...]:
    """The questions of the longest text of which all fit `length` tokens."""
    asked = draft.asked[draft.task.examples :]

    def tokens(size: int, questions: Sequence[tuple[str, str]] = asked[:1]) -> int:
        text = draft.text(size)
        prompts = [f"{_prompt(tokenizer, draft, text, key)} {code}" for key, code in questions]
        return max(len(_encoded(tokenizer, prompt)) for prompt in prompts)

    if tokens(0, asked) > length:
        raise ConfigError(
            f"length={length} is too short for questions and their codes alone, which take "
            f"{tokens(0, asked)} tokens; give a length beyond that"
        )
    size = bisect_right(range(len(draft.filler) + 1), length, key=tokens) - 1
    if size == len(draft.filler):
        raise ConfigError(
            f"the text has words for a list of {tokens(size)} tokens, and length={length} takes "
            "more; give a text with more different words, or a shorter length"
        )
    while tokens(size, asked) > length:
        size -= 1
    return tuple(_questions(tokenizer, draft, size))


def _questions(tokenizer: PreTrainedTokenizerBase, draft: _Draft, size: int) -> Iterator[Question]:
    """All that is asked of a text with `size` pieces of filler."""
    text, examples = draft.text(size), draft.task.examples
    for (key, code), depth in zip(draft.asked[examples:], draft.depths[examples:], strict=True):
        prompt = _prompt(tokenizer, draft, text, key)
        whole = _encoded(tokenizer, f"{prompt} {code}")
        start = _answer_start(tokenizer, _encoded(tokenizer, prompt), whole)
        before = prompt[: prompt.index(draft.task.stated(key, code))]
        yield Question(
            prompt_ids=tuple(whole[:start]),
            answer_ids=tuple(whole[start:]),
            code=code,
            depth=depth,
            distance=start - len(_encoded(tokenizer, before)),
        )


def _answer_start(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], whole: Sequence[int]
) -> int:
    """Where in the tokens of a prompt and its answer the answer begins: with the first token that
    holds some of it, which may hold the end of the prompt as well, but is more than a space."""
    pairs = enumerate(zip(prompt, whole, strict=False))
    start = next((i for i, (one, other) in pairs if one != other), len(prompt))
    while not tokenizer.decode(whole[start]).strip():
        start += 1
    return start


def _prompt(tokenizer: PreTrainedTokenizerBase, draft: _Draft, text: str, key: str) -> str:
    """The conversation up to where the code of `key` is due."""
    task = draft.task
    turns: list[tuple[str, str]] = []
    for example, code in draft.asked[: task.examples]:
        turns.append((_asking(example), f"{task.stated(example, code)}."))
    turns.append((_asking(key), task.fact.format(key=key)))
    turns[0] = (f"{task.introduction}\n\n{text}\n\n{turns[0][0]}", turns[0][1])
    if tokenizer.chat_template is None:
        return "\n\n".join("\n".join(turn) for turn in turns)
    messages = [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]
    # Templates of models that think would have the answer begin inside of their thoughts.
    how = {"add_generation_prompt": True, "enable_thinking": False}
    return chat_text(tokenizer, messages[:-1], **how) + turns[-1][1]


def _asking(key: str) -> str:
    return f"What is the code of {key}?"


def _encoded(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    ids = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
    return ids if tokenizer.chat_template else [*leading_special_tokens(tokenizer), *ids]

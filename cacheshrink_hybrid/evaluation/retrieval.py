"""Can a model say again what stands somewhere in a long text? Asked through its live cache.

All questions of a text begin with the same tokens, so these are read once, and every question is
read on top of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..calibration.amount import positions_of
from ..errors import ConfigError
from ..model.attached_plan import is_converted, plan_of
from .defaults import DEFAULT_CHUNK
from .live_context import LiveContext
from .retrieval_questions import Question

ALL = "all keys and values"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model says to a question.

    Attributes:
        said: text of the greedy continuation, one token longer than the code.
        exact: whether the first number in it is the code.
        log_probability: of a token of the code given those before it, in nats, their mean.
        likeliest: share of these tokens than which none is more likely.
    """

    said: str
    exact: bool
    log_probability: float
    likeliest: float


@dataclass(frozen=True, slots=True)
class ExactReads:
    """Tokens that a model reads exactly, at 16 bits or as its source does; of other tokens it reads
    the rows that conversion made.

    Attributes:
        sinks: first tokens of a sequence that some layer reads exactly.
        window: most recent tokens, the last one included, that some layer reads exactly.
        everything: whether no layer's keys and values were converted.
        states: whether recurrent states are read exactly.
    """

    sinks: int
    window: int
    everything: bool
    states: bool

    def words(self) -> str:
        words = ALL
        if not self.everything:
            some = self.sinks or self.window
            words = f"the first {self.sinks} and the last {self.window} tokens" if some else "none"
        return words if self.states else f"{words}; recurrent states as conversion codes them"

    def cover(self, question: Question) -> bool:
        """Whether the fact that a question is about is among them, if in part."""
        first = len(question.prompt_ids) - question.distance
        return self.everything or first < self.sinks or question.distance <= self.window


def exact_reads(model: PreTrainedModel) -> ExactReads:
    plan = plan_of(model) if is_converted(model) else None
    latents = () if plan is None else plan.latents
    return ExactReads(
        sinks=max((latent.exact_sinks for latent in latents), default=0),
        window=max((latent.exact_window for latent in latents), default=0),
        everything=not latents,
        states=plan is None or not plan.states,
    )


def measure_retrieval(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Sequence[Question]],
    *,
    chunk_length: int = DEFAULT_CHUNK,
    progress: bool = False,
) -> list[tuple[Answer, ...]]:
    """The answers to all questions of texts that `retrieval_texts` made with this tokenizer.

    Args:
        model: converted or not.
        chunk_length: tokens per forward pass.

    Raises:
        ConfigError: a prompt and its answer are beyond the model's positions.
    """
    longest = max(len(one.prompt_ids) + len(one.answer_ids) for text in texts for one in text)
    check_positions(model, longest)
    return [
        _answers(model, tokenizer, questions, chunk_length)
        for questions in tqdm(texts, desc="retrieval", unit="text", disable=not progress)
    ]


def check_positions(model: PreTrainedModel, length: int) -> None:
    """Raise `ConfigError` if a model has not so many positions."""
    limit = positions_of(model.config)
    if limit is not None and length > limit:
        raise ConfigError(
            f"prompts and answers of {length} tokens are beyond the {limit} positions of this "
            f"model; give a length of at most {limit}"
        )


def _answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    chunk_length: int,
) -> tuple[Answer, ...]:
    shared = _shared_length([question.prompt_ids for question in questions])
    text = LiveContext(model, questions[0].prompt_ids[:shared], chunk_length)
    answers = []
    for question in questions:
        asked = text.extended(question.prompt_ids[shared:])
        values, likeliest = asked.log_probabilities(question.answer_ids)
        said = tokenizer.decode(asked.greedy(len(question.answer_ids) + 1))
        number = re.search(r"\d+", said)
        answers.append(
            Answer(
                said=said,
                exact=number is not None and number[0] == question.code,
                log_probability=float(values.double().mean()),
                likeliest=float(likeliest.double().mean()),
            )
        )
    return tuple(answers)


def _shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens with which all of them begin."""
    columns = enumerate(zip(*prompts, strict=False))
    return next((i for i, ids in columns if len(set(ids)) > 1), min(map(len, prompts)))

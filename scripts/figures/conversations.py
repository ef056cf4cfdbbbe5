"""Let a chat model hold conversations about passages of books, to calibrate on.

    python -m scripts.figures.conversations MODEL BOOKS OUTPUT.jsonl [--number 64]

A passage of each of the first books is shown, one question is asked of it and then another; the
model answers both, by sampling with a fixed seed. A line of OUTPUT is {"messages": [...]}.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

Conversation = list[dict[str, str]]

FIRST = (
    "Summarise this passage in two sentences.",
    "Who is spoken of here, and what do they do?",
    "Rewrite this passage in plain modern English.",
    "Give five words of this passage that a child may not know, and explain them.",
)
SECOND = (
    "What might happen next? Tell it in a few sentences.",
    "Write a short letter to one of these people.",
    "Name three things that the author leaves out.",
    "Make a list of what can be seen and heard.",
)
PASSAGE_CHARACTERS = 600
ANSWER_TOKENS = 160
BATCH = 8


def main(argv: Sequence[str] | None = None) -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("books", type=Path, metavar="BOOKS")
    parser.add_argument("output", type=Path, metavar="OUTPUT.jsonl")
    parser.add_argument("--number", type=int, default=64, help="of conversations")
    given = parser.parse_args(argv)
    books = sorted(given.books.glob("*.txt"))
    if not books:
        parser.error(f"{given.books} has no text files")
    tokenizer = AutoTokenizer.from_pretrained(given.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    torch.manual_seed(0)
    chats: list[Conversation] = [[] for _ in range(given.number)]
    for questions in (FIRST, SECOND):
        for number, chat in enumerate(chats):
            question = questions[number % len(questions)]
            shown = "" if chat else f"{_passage(books, number)}\n\n"
            chat.append({"role": "user", "content": shown + question})
        for start in range(0, len(chats), BATCH):
            _answer(model, tokenizer, chats[start : start + BATCH])
    given.output.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"messages": chat}) + "\n" for chat in chats)
    given.output.write_text("".join(lines), encoding="utf-8")
    return 0


def _passage(books: Sequence[Path], number: int) -> str:
    """From the middle of a book, another place for every round over the books."""
    text = books[number % len(books)].read_text(encoding="utf-8")
    start = len(text) // 2 + number // len(books) * 10 * PASSAGE_CHARACTERS
    return " ".join(text[start : start + PASSAGE_CHARACTERS].split())


@torch.inference_mode()
def _answer(model: PreTrainedModel, tokenizer: Tokenizer, chats: Sequence[Conversation]) -> None:
    """Append the model's answer to each of some conversations."""
    asked = tokenizer.apply_chat_template(
        list(chats), add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
    )
    made = model.generate(
        **asked, max_new_tokens=ANSWER_TOKENS, do_sample=True, temperature=0.7, top_p=0.95
    )
    answers = tokenizer.batch_decode(
        made[:, asked["input_ids"].shape[1] :], skip_special_tokens=True
    )
    for chat, answer in zip(chats, answers, strict=True):
        chat.append({"role": "assistant", "content": answer.strip()})


if __name__ == "__main__":
    raise SystemExit(main())

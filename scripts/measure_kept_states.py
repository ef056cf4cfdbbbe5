"""What is lost after a hit on a prefix whose recurrent states are kept in fewer bytes.

    python -m scripts.measure_kept_states [MODEL ...] [--codes live float16 int8 ...]

MODEL is a source or converted model with recurrent states; without one, it is the hybrid that ships
with the package, as it is and converted at 4x with states at 2x. Sequences are prefilled in the
engine's pool, kept as prefixes, and gone on with by others, whose states come out of the code.
Printed, of texts that are gone on with once, and again after every `--turn` tokens: perplexity of
what follows and its change over a cold run, with the standard error over texts; the divergence
KL(cold | hit) per token; and, of recall exercises that are cut between showing and return, the
share of remembered tokens. `other pieces` is a cold run whose first tokens are prefilled in pieces
of another size: what rounding alone makes of the same sums. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cacheshrink_hybrid import convert_to_mla
from cacheshrink_hybrid.calibration.exercises import RECALL_KINDS, recall_exercises, text_encoder
from cacheshrink_hybrid.cli.arguments import load_any
from cacheshrink_hybrid.cli.plots import short_name
from cacheshrink_hybrid.cli.report import circumstances, write_json
from cacheshrink_hybrid.demo import model_path
from cacheshrink_hybrid.demo.corpus import held_out_text, training_text
from cacheshrink_hybrid.engine import LLM
from cacheshrink_hybrid.evaluation.paired import mean_with_error, paired_difference
from cacheshrink_hybrid.pool.prefixes.state_codes import KEPT_STATES
from cacheshrink_hybrid.text_tables import format_table

MEMORY = "256MiB"
PIECE, OTHER_PIECE = 128, 96
OTHER_PIECES = "other pieces"
CODES = tuple(code for code in KEPT_STATES if code != "float32")
"""Live states of models that are not converted are float32."""


@dataclass(frozen=True, slots=True)
class Passage:
    """Tokens that are fed to a model.

    Attributes:
        cuts: positions at which another sequence goes on.
        answers: of the tokens that only memory tells.
    """

    ids: list[int]
    cuts: tuple[int, ...]
    answers: tuple[int, ...] = ()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--codes", nargs="+", choices=KEPT_STATES, default=list(CODES))
    parser.add_argument("--texts", type=int, default=24)
    parser.add_argument("--length", type=int, default=512, help="tokens that are kept")
    parser.add_argument("--following", type=int, default=256, help="tokens that follow")
    parser.add_argument("--turn", type=int, default=32)
    parser.add_argument("--exercises", type=int, default=16, help="per kind")
    parser.add_argument("--kinds", nargs="+", choices=RECALL_KINDS, default=list(RECALL_KINDS))
    parser.add_argument("--distance", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    records = [
        {"model": name, **record}
        for name, model, tokenizer in models(given.models)
        for record in measured(name, model, tokenizer, given)
    ]
    print(format_table([{name: shown(x) for name, x in record.items()} for record in records]))
    results: dict[str, Any] = {"program": "measure_kept_states"}
    for name in ("texts", "length", "following", "turn", "exercises", "distance", "threads"):
        results[name] = getattr(given, name)
    results["runs"] = records
    if given.json is not None:
        write_json(given.json, results)
    print(json.dumps({**circumstances(), **results}))
    return 0


def models(names: Sequence[str]) -> Iterator[tuple[str, PreTrainedModel, PreTrainedTokenizerBase]]:
    for name in names or [str(model_path())]:
        model, tokenizer = load_any(name, device="cpu", dtype="float32", trust_remote_code=False)
        yield short_name(name), model.eval(), tokenizer
    if not names:
        model, tokenizer = convert_to_mla(
            model_path(),
            compression_ratio=4.0,
            state_ratio=2.0,
            calibration_texts=training_text(),
            num_calibration_samples=16,
            dtype=torch.float32,
            verbose=False,
        )
        yield "shipped, 4x, states 2x", model, tokenizer


def measured(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    given: argparse.Namespace,
) -> Iterator[dict[str, Any]]:
    """A record for each way of going on."""
    groups = {
        "once": texts(tokenizer, given, (given.length,)),
        "turns": texts(
            tokenizer,
            given,
            tuple(range(given.length, given.length + given.following, given.turn)),
        ),
        "recall": exercises(tokenizer, given),
    }
    cold = LLM(model, cache_memory=MEMORY, prefix_cache=False)
    expected = {
        group: [log_probabilities(cold, passage) for passage in passages]
        for group, passages in groups.items()
    }
    for code in tqdm((OTHER_PIECES, *given.codes), desc=name, unit="code"):
        again = code == OTHER_PIECES
        llm = cold if again else LLM(model, cache_memory=MEMORY, prefix_state_dtype=code)
        found = {
            group: [
                log_probabilities(llm, x, hit=not again, piece=OTHER_PIECE if again else PIECE)
                for x in passages
            ]
            for group, passages in groups.items()
        }
        kept = llm.store.prefixes.kept_state
        record: dict[str, Any] = {"states kept": code, "bytes": kept.useful_bytes}
        for group in ("once", "turns"):
            record |= compared(group, groups[group], expected[group], found[group])
        recalled, asked = recall(groups["recall"], found["recall"])
        record |= {"recalled": recalled, "asked": asked}
        record["recalled cold"] = recall(groups["recall"], expected["recall"])[0]
        yield record


def texts(
    tokenizer: PreTrainedTokenizerBase, given: argparse.Namespace, cuts: tuple[int, ...]
) -> list[Passage]:
    """Pieces of documents that no model was calibrated on, in turns of one from each."""
    encode, length = text_encoder(tokenizer), given.length + given.following
    documents = [encode(document) for document in held_out_text()]
    longest = max(map(len, documents))
    pieces = (ids[at : at + length] for at in range(0, longest, length) for ids in documents)
    whole = [ids for ids in pieces if len(ids) == length]
    return [Passage(ids, cuts) for ids in whole[: given.texts]]


def exercises(tokenizer: PreTrainedTokenizerBase, given: argparse.Namespace) -> list[Passage]:
    """Cut before what they show comes again, with half of the distance behind the cut."""
    return [
        Passage(
            list(exercise.token_ids),
            (exercise.answer_positions[0] - given.distance // 2,),
            exercise.answer_positions,
        )
        for kind in given.kinds
        for exercise in recall_exercises(
            tokenizer, kind=kind, distance=given.distance, count=given.exercises
        )
    ]


@torch.no_grad()
def log_probabilities(
    llm: LLM, passage: Passage, *, hit: bool = False, piece: int = PIECE
) -> Tensor:
    """Of the tokens behind the first cut, (n, V).

    Args:
        hit: at every cut, the sequence is kept and another goes on.
        piece: tokens that are prefilled at once, up to the first cut.
    """
    store, ids, found = llm.store, passage.ids, []
    store.create("some")
    ends = (*passage.cuts, len(ids))
    begin = 0
    for number, end in enumerate(ends):
        if begin and hit:
            store.offer_prefix("some", ids[:begin])
            store.free("some")
            store.create("some")
            assert store.resume_prefix("some", ids).num_tokens == begin
        while begin < end:
            size = min(piece if number == 0 else PIECE, end - begin)
            store.reserve(["some"], size)
            logits = llm.runner.prefill("some", ids[begin : begin + size], every_token=True)
            found.append(logits.log_softmax(-1))
            begin += size
    store.free("some")
    store.prefixes.clear()
    return torch.cat(found)[passage.cuts[0] - 1 : -1]


def compared(
    group: str, passages: Sequence[Passage], cold: Sequence[Tensor], found: Sequence[Tensor]
) -> dict[str, Any]:
    nats = [[per_token(p, logs)] for p, logs in zip(passages, found, strict=True)]
    before = [[per_token(p, logs)] for p, logs in zip(passages, cold, strict=True)]
    change, error = paired_difference(before, nats)
    apart = [(a.exp() * (a - b)).sum(-1).mean() for a, b in zip(cold, found, strict=True)]
    return {
        f"{group}: perplexity": math.exp(mean_with_error(nats)[0]),
        f"{group}: change %": 100 * math.expm1(change),
        f"{group}: error %": 100 * (error or 0.0),
        f"{group}: KL": float(torch.stack(apart).mean()),
    }


def per_token(passage: Passage, logs: Tensor) -> float:
    """Mean nats of the tokens behind the first cut."""
    targets = torch.tensor(passage.ids[passage.cuts[0] :])
    return -float(logs.gather(1, targets[:, None]).double().mean())


def recall(passages: Sequence[Passage], found: Sequence[Tensor]) -> tuple[int, int]:
    """Tokens recalled, and asked for."""
    hits = asked = 0
    for passage, logs in zip(passages, found, strict=True):
        places = torch.tensor(passage.answers)
        right = logs.argmax(-1)[places - passage.cuts[0]] == torch.tensor(passage.ids)[places]
        hits, asked = hits + int(right.sum()), asked + len(places)
    return hits, asked


def shown(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())

"""Train the small hybrid model that ships with the package, `cacheshrink_hybrid/demo/model`.

    python scripts/train_demo_model.py --output cacheshrink_hybrid/demo/model

A GraniteMoeHybrid of 3.0 M parameters (4 Mamba-2 and 2 NoPE attention layers) with one token per
character, trained on the CPU from documentation that comes with Python, interrupted by passages,
random strings and `key: value` lines that return later in the sequence. Plain text alone teaches
such a model to look back some 16 characters; a curriculum of returns, short and near first, teaches
it to remember. 51 minutes on 2 cores of an EPYC that other work shared gave 12.6 M tokens, at 7000
tokens/s while both cores were free and 3000 to 4000 with one. The schedule follows the wall clock,
so two runs are never quite the same. Two compilations of about a minute each are part of it.

What comes out is a stock checkpoint in float16 (config, safetensors, tokenizer; 6 MB) and, printed,
its recall accuracy by distance and its perplexity on held-out documentation by position. SIGTERM
ends the training early; `--resume` goes on from the checkpoint written every two minutes. Needs the
package installed, a C++ compiler, and torch 2.9 for Muon.
"""

import argparse
import contextlib
import math
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch._inductor import config as inductor_config
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GraniteMoeHybridConfig,
    GraniteMoeHybridForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.models.granitemoehybrid import modeling_granitemoehybrid as modeling

from cacheshrink_hybrid.demo.corpus import held_out_text, training_text
from cacheshrink_hybrid.recall import (
    RECALL_KINDS,
    MemoryItem,
    RecallKind,
    memory_item,
    recall_exercises,
)

SPECIAL_TOKENS = ("<pad>", "<s>", "<unk>")
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
VOCABULARY = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *CHARACTERS))}
PAD, BOS, UNK = (VOCABULARY[token] for token in SPECIAL_TOKENS)
NEWLINE = VOCABULARY["\n"]

SHORT, LONG = (8, 512), (4, 1280)  # sequences in a batch, tokens in a sequence
MAX_GAP = 1100
UNKNOWABLE_WEIGHT = 0.1  # in the loss, of tokens such as those of a random string's first showing
PEAK_LEARNING_RATE = 3e-3
DISTANCE_EDGES = (8, 64, 256)  # of the running accuracy that is printed


def encode(text: str) -> list[int]:
    """Token ids of normalized text; the saved tokenizer gives the same after `<s>`."""
    return [VOCABULARY[character] for character in text]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character or newline; `<s>` in front of every text."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )


def build_model(seed: int) -> GraniteMoeHybridForCausalLM:
    """The untrained model, in float32."""
    torch.manual_seed(seed)
    config = GraniteMoeHybridConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=192,
        num_hidden_layers=6,
        layer_types=["linear_attention", "linear_attention", "full_attention"] * 2,
        num_attention_heads=6,
        num_key_value_heads=3,
        attention_multiplier=32**-0.5,
        position_embedding_type=None,
        mamba_n_heads=6,
        mamba_d_head=64,
        mamba_d_state=64,
        mamba_n_groups=1,
        mamba_d_conv=4,
        mamba_expand=2,
        mamba_chunk_size=64,
        num_local_experts=0,
        num_experts_per_tok=0,
        intermediate_size=512,
        shared_intermediate_size=512,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=BOS,
    )
    model = GraniteMoeHybridForCausalLM(config)
    for module in model.modules():
        if isinstance(module, modeling.GraniteMoeHybridMambaLayer):
            # Heads that forget within 4 to 1000 tokens; the default ones do within one or two.
            step = torch.logspace(-3, math.log10(0.25), module.num_heads)
            nn.init.zeros_(module.A_log)
            module.dt_bias.data.copy_(step.expm1().log())
    return model


def batched_chunk_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    *,
    D: Tensor,
    dt_bias: Tensor,
    **_: object,
) -> Tensor:
    """Mamba-2's scan from an empty state, as batched matrix products over chunks.

    Args:
        hidden_states: (B, T, M, P), T a multiple of `chunk_size`.
        dt: (B, T, M), before bias and softplus.
        A, D, dt_bias: (M,).
        B, C: (B, T, 1, N), one group.

    Returns:
        (B, T, M, P).
    """
    b, t, m, p = hidden_states.shape
    n, l, c = B.shape[-1], chunk_size, t // chunk_size
    dtype = hidden_states.dtype
    dt = F.softplus(dt.float() + dt_bias).view(b, c, l, m).transpose(2, 3)  # (b, c, m, l)
    log_decay = (A[:, None] * dt).cumsum(-1)
    x = hidden_states.reshape(b, c, l, m, p).transpose(2, 3)
    x_dt = x * dt[..., None].to(dtype)
    B, C = B.reshape(b, c, l, n), C.reshape(b, c, l, n)

    causal = torch.ones(l, l, dtype=torch.bool).tril()
    decay = (log_decay[..., :, None] - log_decay[..., None, :]).masked_fill(~causal, -torch.inf)
    within = ((C @ B.mT)[:, :, None] * decay.exp().to(dtype)) @ x_dt

    to_end = (log_decay[..., -1:] - log_decay).exp().to(dtype)
    gathered = (x_dt * to_end[..., None]).transpose(2, 3).reshape(b, c, l, m * p)
    states = (B.mT @ gathered).float().view(b, c, n, m, p)
    chunk_decay = log_decay[..., -1].exp()[:, :, None, :, None]
    carried = [torch.zeros_like(states[:, 0])]
    for i in range(c - 1):
        carried.append(carried[-1] * chunk_decay[:, i] + states[:, i])
    before = torch.stack(carried, 1).view(b, c, n, m * p).to(dtype)
    across = (C @ before).view(b, c, l, m, p).transpose(2, 3) * log_decay.exp()[..., None].to(dtype)

    y = within + across + x * D[:, None, None].to(dtype)
    return y.transpose(2, 3).reshape(b, t, m, p)


def shifted_conv(hidden_states: Tensor, weight: Tensor, bias: Tensor, **_: object) -> Tensor:
    """Causal depthwise convolution and SiLU of (B, channels, T), as a sum of shifted products."""
    x, width = hidden_states.transpose(1, 2), weight.shape[-1]
    padded = F.pad(x, (0, 0, width - 1, 0))
    y = bias + sum(padded[:, i : i + x.shape[1]] * weight[:, i] for i in range(width))
    return F.silu(y).to(hidden_states.dtype).transpose(1, 2)


@contextlib.contextmanager
def fast_mamba() -> Iterator[None]:
    """Within it, transformers' Mamba-2 layers of this process run the two functions above."""
    stock = modeling.mamba2_chunk_scan, modeling.causal_conv1d_fn
    modeling.mamba2_chunk_scan, modeling.causal_conv1d_fn = batched_chunk_scan, shifted_conv
    try:
        yield
    finally:
        modeling.mamba2_chunk_scan, modeling.causal_conv1d_fn = stock


@torch.no_grad()
def check_fast_mamba(model: nn.Module) -> None:
    """Compares the logits of `fast_mamba` with those of stock transformers."""
    ids = torch.tensor([encode(held_out_text()[0][:256])])
    stock = model(ids, use_cache=False).logits
    with fast_mamba():
        difference = (model(ids, use_cache=False).logits - stock).abs().max().item()
    print(f"fast Mamba-2 differs from transformers' by {difference:.1e} in the logits", flush=True)
    if difference > 1e-4:
        raise RuntimeError(f"the fast Mamba-2 is wrong: {difference:.1e}, allowed 1e-4")


@dataclass
class Curriculum:
    """How long passages are and how far away they return; both grow with success.

    Args:
        num_chars: letters of the longest passage.
        gap: tokens of the longest way back; below 4 everything returns at once.
        hits, asked: recent answers at the hard end, right and all.
    """

    num_chars: int = 6
    gap: int = 0
    hits: int = 0
    asked: int = 0

    def report(self, hits: int, asked: int) -> None:
        """Counts answers at the hard end and moves on when 85 % of the last 1500 are right."""
        self.hits, self.asked = self.hits + hits, self.asked + asked
        if self.asked < 1500:
            return
        if self.hits > 0.85 * self.asked:
            if self.num_chars < 12:
                self.num_chars = math.ceil(self.num_chars * 1.4)
            else:
                self.gap = min(MAX_GAP, max(48, int(self.gap * 1.6)))
                self.num_chars = min(56, max(24, math.ceil(self.num_chars * 1.15)))
        self.hits = self.asked = 0


@dataclass(frozen=True)
class Batch:
    """Sequences (B, T + 1), and for each predicted token (B, T) what it is.

    Args:
        ids: token ids.
        weights: weight in the loss.
        kinds: of an answer, the index in `RECALL_KINDS`; -1 elsewhere.
        distances: of an answer, tokens between the original and its return.
    """

    ids: Tensor
    weights: Tensor
    kinds: Tensor
    distances: Tensor


class LabelledToken(NamedTuple):
    """One token of a training sequence; the fields are those of `Batch`."""

    id: int
    weight: float = 1.0
    kind: int = -1
    distance: int = 0


class Appointment(NamedTuple):
    """An item to be brought back as soon as the sequence has `due` tokens."""

    due: int
    original_end: int
    kind: int
    item: MemoryItem


class SequenceMixer:
    """Endless training sequences: documentation, interrupted by passages that return later."""

    def __init__(self, documents: Sequence[str], curriculum: Curriculum, seed: int) -> None:
        self.rng = random.Random(seed)
        self.documents = documents
        self.word_lists = [_shuffled_words(document, self.rng) for document in documents]
        self.sizes = [len(document) for document in documents]
        self.encoded = [encode(document) for document in documents]
        self.curriculum = curriculum

    def batch(self, shape: tuple[int, int]) -> Batch:
        rows = [self._sequence(shape[1] + 1) for _ in range(shape[0])]
        ids, weights, kinds, distances = torch.tensor(rows, dtype=torch.float64).unbind(-1)
        return Batch(
            ids.long(), weights[:, 1:].float(), kinds[:, 1:].long(), distances[:, 1:].long()
        )

    def _sequence(self, length: int) -> list[LabelledToken]:
        rng = self.rng
        row = [LabelledToken(BOS, weight=0.0)]
        waiting: list[Appointment] = []  # by due
        next_item = rng.randint(1, 60)
        document = rng.choices(self.encoded, self.sizes)[0]
        place = rng.randrange(max(1, len(document) - length // 2))
        while len(row) < length:
            if waiting and waiting[0].due <= len(row):
                row += _return(waiting.pop(0), len(row))
            elif len(row) >= next_item:
                kind, item = self._item()
                room = length - len(row) - 2 * len(item.original) - 4
                if room < 0:
                    next_item = length
                    continue
                weight = 1.0 if RECALL_KINDS[kind] == "text" else UNKNOWABLE_WEIGHT
                row.append(LabelledToken(NEWLINE))
                row += [LabelledToken(token, weight) for token in item.original]
                end, gap = len(row), self._gap(room)
                if gap > 0:
                    row.append(LabelledToken(NEWLINE))
                waiting.append(Appointment(end + gap, end, kind, item))
                waiting.sort(key=lambda appointment: appointment.due)
                next_item = len(row) + int(rng.expovariate(0.4 / (len(item.original) + 4)))
            elif place >= len(document):
                row.append(LabelledToken(BOS, weight=0.0))
                document, place = rng.choices(self.encoded, self.sizes)[0], 0
            else:
                until = min(length, next_item, *(appointment.due for appointment in waiting))
                chunk = document[place : place + until - len(row)]
                place += len(chunk)
                row += [LabelledToken(token) for token in chunk]
        return row[:length]

    def _item(self) -> tuple[int, MemoryItem]:
        """Something to remember, and the index of its kind.

        Text comes last and then most: where the words themselves suggest how a passage goes on,
        the model is slowest to look back. Half of it has its words shuffled.
        """
        rng, limit = self.rng, self.curriculum.num_chars
        kind = rng.choices(range(3), (0.25, 0.5, 0.25) if self.curriculum.gap else (0.7, 0, 0.3))[0]
        num_chars = rng.randint(max(6, limit // 3), limit)
        if RECALL_KINDS[kind] == "text":
            num_chars *= 3
        return kind, memory_item(
            encode,
            RECALL_KINDS[kind],
            rng,
            rng.choice((self.documents, self.word_lists)),
            num_chars=num_chars,
            num_keys=rng.randint(1, max(2, min(6, limit // 6))),
        )

    def _gap(self, room: int) -> int:
        """Tokens of text before something returns, at most `room`: 0, or near or far."""
        rng, gap = self.rng, min(self.curriculum.gap, room)
        if gap < 4 or rng.random() < 0.15:
            return 0
        if rng.random() < 0.5:
            return rng.randint(gap // 2, gap)
        return int(math.exp(rng.uniform(0, math.log(gap))))


def _return(appointment: Appointment, position: int) -> list[LabelledToken]:
    """The lines in which an item returns when the sequence has `position` tokens."""
    _, original_end, kind, item = appointment
    distance = position + 1 - original_end
    tokens = [
        LabelledToken(token, 1.0, kind, distance)
        if counts
        else LabelledToken(token, UNKNOWABLE_WEIGHT)
        for token, counts in zip(item.again, item.counts, strict=True)
    ]
    return [LabelledToken(NEWLINE), *tokens, LabelledToken(NEWLINE)]


def _shuffled_words(text: str, rng: random.Random) -> str:
    words = text.split()
    rng.shuffle(words)
    return " ".join(words)


class RunningRecall:
    """Recent accuracy on answers, by kind and distance."""

    def __init__(self) -> None:
        self.hits = torch.zeros(len(RECALL_KINDS), len(DISTANCE_EDGES) + 1)
        self.asked = torch.full_like(self.hits, 1e-6)

    def add(self, kinds: Tensor, distances: Tensor, hits: Tensor) -> None:
        where = kinds, torch.bucketize(distances, torch.tensor(DISTANCE_EDGES), right=True)
        self.hits.mul_(0.97).index_put_(where, hits.float(), accumulate=True)
        self.asked.mul_(0.97).index_put_(where, torch.ones_like(hits).float(), accumulate=True)

    def __str__(self) -> str:
        rows = (self.hits / self.asked).tolist()
        return " ".join(
            f"{kind} " + "/".join(f"{accuracy:.2f}" for accuracy in row)
            for kind, row in zip(RECALL_KINDS, rows, strict=True)
        )


def faster_num_threads(num_threads: int) -> int:
    """`num_threads`, or 1 while other processes keep the cores busy.

    Threads that wait for each other at every operation come to a halt when one of them shares its
    core, so on a shared machine a single one is often faster. Measured on a few small products.
    """
    matrix, seconds = torch.ones(512, 512), {}
    for candidate in (1, num_threads):
        torch.set_num_threads(candidate)
        start = time.monotonic()
        for _ in range(8):
            matrix @ matrix
        seconds[candidate] = time.monotonic() - start
    return num_threads if seconds[num_threads] < 0.75 * seconds[1] else 1


def learning_rate(step: int, progress: float) -> float:
    """Warm-up over 60 steps, constant, then linear to 2 % over the last 35 % of the time."""
    return PEAK_LEARNING_RATE * min(1.0, (step + 1) / 60, max(0.02, (1 - progress) / 0.35))


def build_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for everything else."""
    parameters = [(p, "layers" in name and p.ndim == 2) for name, p in model.named_parameters()]
    return [
        torch.optim.Muon(
            [p for p, is_matrix in parameters if is_matrix],
            weight_decay=0.1,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [p for p, is_matrix in parameters if not is_matrix], betas=(0.9, 0.98), weight_decay=0.0
        ),
    ]


@dataclass
class Training:
    """Everything that changes while training, and can be saved and resumed."""

    model: GraniteMoeHybridForCausalLM
    optimizers: list[torch.optim.Optimizer]
    curriculum: Curriculum
    step: int = 0
    num_tokens: int = 0
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "curriculum": asdict(self.curriculum),
            "counts": (self.step, self.num_tokens, self.seconds),
        }
        torch.save(state, path.with_suffix(".partial"))
        os.replace(path.with_suffix(".partial"), path)

    def load(self, path: Path) -> None:
        state = torch.load(path)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.curriculum = Curriculum(**state["curriculum"])
        self.step, self.num_tokens, self.seconds = state["counts"]


def train(training: Training, *, minutes: float, threads: int, seed: int, checkpoint: Path) -> None:
    """Trains until `minutes` of wall time have passed, those before a resume included."""
    model, curriculum = training.model, training.curriculum
    mixer = SequenceMixer(training_text(), curriculum, seed + training.step)
    inductor_config.cpp.dynamic_threads = True
    compiled = torch.compile(model, dynamic=False)
    recall, text_loss = RunningRecall(), math.nan
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    start, last_save = time.monotonic() - training.seconds, training.seconds
    while not stopped and (progress := training.seconds / (60 * minutes)) < 1:
        shape = LONG if curriculum.gap > 330 or progress > 0.6 else SHORT
        rate = learning_rate(training.step, progress)
        for optimizer in training.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        if training.step % 3 == 0:
            torch.set_num_threads(faster_num_threads(threads))
        batch = mixer.batch(shape)
        targets = batch.ids[:, 1:]
        with torch.autocast("cpu", torch.bfloat16):
            logits = compiled(batch.ids[:, :-1], use_cache=False).logits
        losses = F.cross_entropy(logits.float().mT, targets, reduction="none")  # (B, T)
        ((losses * batch.weights).sum() / batch.weights.sum()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in training.optimizers:
            optimizer.step()
            optimizer.zero_grad()

        answers = batch.kinds >= 0
        kinds, distances = batch.kinds[answers], batch.distances[answers]
        hits = (logits.argmax(-1) == targets)[answers]
        hard = (kinds == RECALL_KINDS.index("letters")) & (distances >= curriculum.gap // 2)
        curriculum.report(int(hits[hard].sum()), int(hard.sum()))
        recall.add(kinds, distances, hits)
        recent = losses[(batch.weights == 1) & ~answers].mean().item()
        text_loss = recent if math.isnan(text_loss) else 0.97 * text_loss + 0.03 * recent

        step_seconds = time.monotonic() - start - training.seconds
        training.step += 1
        training.num_tokens += targets.numel()
        training.seconds += step_seconds
        if training.step % 20 == 0:
            print(
                f"{training.seconds:5.0f} s, step {training.step}, rate {rate:.1e}, "
                f"text {text_loss:.3f}, chars {curriculum.num_chars}, gap {curriculum.gap}, "
                f"recall {recall}, {targets.numel() / step_seconds:.0f} tokens/s, "
                f"{torch.get_num_threads()} threads",
                flush=True,
            )
        if training.seconds - last_save > 120:
            training.save(checkpoint)
            last_save = training.seconds
    training.save(checkpoint)


def export(model: GraniteMoeHybridForCausalLM, directory: Path) -> None:
    """Writes a stock float16 checkpoint with its tokenizer; replaces `directory` when complete."""
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    half = GraniteMoeHybridForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(partial)
    build_tokenizer().save_pretrained(partial)
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)
    for file in directory.iterdir():
        file.chmod(0o644)


@torch.no_grad()
def recall_accuracy(model: nn.Module, tokenizer: Any, kind: RecallKind, distance: int) -> float:
    """Teacher-forced accuracy on the answers of 24 exercises."""
    hits: list[bool] = []
    for exercise in recall_exercises(tokenizer, kind=kind, distance=distance, count=24):
        ids, answers = torch.tensor(exercise.token_ids), torch.tensor(exercise.answer_positions)
        logits = model(ids[None], use_cache=False).logits[0, answers - 1]
        hits += (logits.argmax(-1) == ids[answers]).tolist()
    return sum(hits) / len(hits)


@torch.no_grad()
def perplexity_by_position(model: nn.Module, tokenizer: Any) -> dict[tuple[int, int], float]:
    """Perplexity per token of held-out text, by position after `<s>`, over windows of 1024."""
    buckets = ((4, 16), (16, 64), (64, 256), (256, 1024))
    text = [d[i : i + 1023] for d in held_out_text() for i in range(0, len(d) - 1023, 8192)]
    losses = []
    for window in text:
        ids = torch.tensor([tokenizer(window).input_ids])
        logits = model(ids, use_cache=False).logits.float()
        losses.append(F.cross_entropy(logits[:, :-1].mT, ids[:, 1:], reduction="none")[0])
    mean = torch.stack(losses).double().mean(0)  # (T - 1,)
    return {(a, b): mean[a - 1 : b - 1].mean().exp().item() for a, b in buckets}


def evaluate(trained: nn.Module, directory: Path) -> None:
    """Prints what the exported model can do, with stock transformers code."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    exported = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    for kind in RECALL_KINDS:
        accuracies = {d: recall_accuracy(exported, tokenizer, kind, d) for d in (64, 256, 1024)}
        print(f"recall of {kind}:", ", ".join(f"{a:.3f} at {d}" for d, a in accuracies.items()))
    half = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float16).eval()
    for name, model in (("trained", trained.eval()), ("exported", exported), ("float16", half)):
        by_position = perplexity_by_position(model, tokenizer)
        print(f"perplexity, {name}:", ", ".join(f"{k}: {v:.4f}" for k, v in by_position.items()))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--minutes", type=float, default=51.0, help="wall time of the training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    parser.add_argument("--checkpoint", type=Path, default=Path("demo_model_checkpoint.pt"))
    parser.add_argument("--resume", action="store_true", help="go on from --checkpoint")
    args = parser.parse_args(argv)

    torch.set_num_threads(args.threads)
    model = build_model(args.seed)
    training = Training(model, build_optimizers(model), Curriculum())
    if args.resume:
        training.load(args.checkpoint)
    check_fast_mamba(model)
    with fast_mamba():
        train(
            training,
            minutes=args.minutes,
            threads=args.threads,
            seed=args.seed,
            checkpoint=args.checkpoint,
        )
    print(f"{training.num_tokens / training.seconds:.0f} tokens/s over {training.step} steps")
    torch.set_num_threads(args.threads)
    export(model, args.output)
    evaluate(model, args.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

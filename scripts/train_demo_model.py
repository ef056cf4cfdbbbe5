"""Train a small model that remembers: the hybrid that ships with the package, Mamba-2 alone,
DeepSeek's latent attention alone, or attention that rotates all channels of a head or a quarter.

    python -m scripts.train_demo_model --output cacheshrink_hybrid/demo/model
    python -m scripts.train_demo_model --architecture mamba2 --output eval/models/mamba2-recall
    python -m scripts.train_demo_model --architecture mla --output eval/models/mla-recall
    python -m scripts.train_demo_model --architecture rotary --output eval/models/rotary-recall
    python -m scripts.train_demo_model --architecture partial-rotary \
        --output eval/models/partial-rotary-recall

One token per character, trained on the CPU from documentation that comes with Python, interrupted
by passages, random strings and `key: value` lines that return later in the sequence. 51 minutes on
2 cores of an EPYC that other work shared gave the hybrid 12.6 M tokens, at 7000 tokens/s while both
cores were free and 3000 to 4000 with one. The schedule follows the wall clock, so two runs are
never quite the same. Two compilations of about a minute each are part of it.

What comes out is a stock checkpoint in float16 (config, safetensors, tokenizer) and, printed, its
recall accuracy by distance and its perplexity on held-out documentation by position. SIGTERM ends
the training early; `--resume` goes on from the checkpoint written every two minutes. Needs the
package installed and a C++ compiler.
"""

import argparse
import math
import os
import shutil
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._inductor import config as inductor_config
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from cacheshrink_hybrid.calibration.exercises import RECALL_KINDS, RecallKind, recall_exercises
from cacheshrink_hybrid.demo.corpus import held_out_text, training_text

from .demo_model.architectures import ARCHITECTURES, Architecture, build_model
from .demo_model.characters import build_tokenizer, encode
from .demo_model.orthogonal_momentum import OrthogonalMomentum
from .demo_model.sequences import Curriculum, SequenceMixer

SHORT, LONG = (8, 512), (4, 1280)  # sequences in a batch, tokens in a sequence
PEAK_LEARNING_RATE = 3e-3
DISTANCE_EDGES = (8, 64, 256)  # of the running accuracy that is printed


@torch.no_grad()
def check_fast_mamba(model: nn.Module, architecture: Architecture) -> None:
    """Compares the logits of `fast_mamba` with those of stock transformers."""
    ids = torch.tensor([encode(held_out_text()[0][:256])])
    stock = model(ids, use_cache=False).logits
    with architecture.faster():
        difference = (model(ids, use_cache=False).logits - stock).abs().max().item()
    print(f"fast Mamba-2 differs from transformers' by {difference:.1e} in the logits", flush=True)
    if difference > 1e-4:
        raise RuntimeError(f"the fast Mamba-2 is wrong: {difference:.1e}, allowed 1e-4")


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


def bfloat16_is_fast() -> bool:
    """Whether this processor multiplies bfloat16 matrices at least as fast as float32 ones.

    Processors without the instructions for it are some 50 times slower.
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(256, 256, dtype=dtype)
        start = time.process_time()
        for _ in range(4):
            matrix @ matrix
        seconds[dtype] = time.process_time() - start
    return seconds[torch.bfloat16] < seconds[torch.float32]


def learning_rate(step: int, progress: float) -> float:
    """Warm-up over 60 steps, constant, then linear to 2 % over the last 35 % of the time."""
    return PEAK_LEARNING_RATE * min(1.0, (step + 1) / 60, max(0.02, (1 - progress) / 0.35))


def build_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Orthogonalized momentum for the matrices of the layers, AdamW for everything else."""
    parameters = [(p, "layers." in name and p.ndim == 2) for name, p in model.named_parameters()]
    return [
        OrthogonalMomentum([p for p, is_matrix in parameters if is_matrix]),
        torch.optim.AdamW(
            [p for p, is_matrix in parameters if not is_matrix], betas=(0.9, 0.98), weight_decay=0.0
        ),
    ]


@dataclass
class Training:
    """Everything that changes while training, and can be saved and resumed."""

    model: PreTrainedModel
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
    reduced = bfloat16_is_fast()
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
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
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


def export(model: PreTrainedModel, directory: Path) -> None:
    """Writes a stock float16 checkpoint with its tokenizer; replaces `directory` when complete."""
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    half = type(model)(model.config)
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), default="hybrid")
    parser.add_argument("--minutes", type=float, default=51.0, help="wall time of the training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    parser.add_argument("--checkpoint", type=Path, default=Path("demo_model_checkpoint.pt"))
    parser.add_argument("--resume", action="store_true", help="go on from --checkpoint")
    args = parser.parse_args(argv)

    torch.set_num_threads(args.threads)
    architecture = ARCHITECTURES[args.architecture]
    model = build_model(architecture, args.seed)
    training = Training(model, build_optimizers(model), Curriculum())
    if args.resume:
        training.load(args.checkpoint)
    if architecture.mixer is not None:
        check_fast_mamba(model, architecture)
    with architecture.faster():
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

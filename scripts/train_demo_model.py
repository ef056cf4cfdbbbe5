"""Train the small hybrid model that ships with the package, `cacheshrink_hybrid/demo/model`.

    python scripts/train_demo_model.py --minutes 60 --output cacheshrink_hybrid/demo/model

WRITE ME
"""

import argparse
import math
import os
import random
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    GraniteMoeHybridConfig,
    GraniteMoeHybridForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.models.granitemoehybrid import modeling_granitemoehybrid as modeling

from cacheshrink_hybrid.demo.corpus import held_out_text, training_text
from cacheshrink_hybrid.recall import RECALL_KINDS, RecallKind, memory_item, recall_exercises

SPECIAL_TOKENS = ("<pad>", "<s>", "<unk>")
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
VOCABULARY = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *CHARACTERS))}
PAD, BOS, UNK = (VOCABULARY[token] for token in SPECIAL_TOKENS)
NEWLINE = VOCABULARY["\n"]

SHORT = (8, 512)  # sequences in a batch, tokens in a sequence
LONG = (4, 1280)
MAX_DISTANCE = 1100
NOISE_WEIGHT = 0.1  # of tokens that nobody can predict, such as a passage's first showing
DISTANCE_EDGES = (8, 64, 256, 4096)


def encode(text: str) -> list[int]:
    """Token ids of normalized text, as the saved tokenizer gives them without `<s>`."""
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
    """The untrained model: 4 Mamba-2 and 2 NoPE attention layers, 3.0 M parameters."""
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
        use_cache=False,
    )
    model = GraniteMoeHybridForCausalLM(config)
    for module in model.modules():
        if isinstance(module, modeling.GraniteMoeHybridMambaLayer):
            # Heads that forget within 4 to 1000 tokens, evenly spaced in the logarithm.
            step = torch.logspace(-3, math.log10(0.25), module.num_heads)
            nn.init.zeros_(module.A_log)
            module.dt_bias.data.copy_(step.expm1().log())
    return model


# --- Mamba-2 as batched matrix products ---


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
    """Mamba-2's scan from an empty state, as matrix products over chunks.

    Args:
        hidden_states: (B, T, M, P), T a multiple of `chunk_size`.
        dt: (B, T, M) before bias and softplus. A, D, dt_bias: (M,).
        B, C: (B, T, 1, N): one group.

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
    scores = (C @ B.mT)[:, :, None] * decay.exp().to(dtype)  # (b, c, m, l, l)
    within = scores @ x_dt

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


def shifted_conv(
    hidden_states: Tensor, weight: Tensor, bias: Tensor, **_: object
) -> Tensor:
    """Causal depthwise convolution and SiLU of (B, channels, T) as a sum of shifted products."""
    x, width = hidden_states.transpose(1, 2), weight.shape[-1]
    padded = F.pad(x, (0, 0, width - 1, 0))
    y = bias + sum(padded[:, i : i + x.shape[1]] * weight[:, i] for i in range(width))
    return F.silu(y).to(hidden_states.dtype).transpose(1, 2)


# --- data ---


@dataclass
class Curriculum:
    """How long passages are and how far away they return; grows with success."""

    num_chars: int = 6
    gap: int = 1
    hits: float = 0.0
    asked: float = 0.0

    def report(self, hits: int, asked: int) -> None:
        """Counts answers at the hard end, and moves on when 90 % of the recent ones are right."""
        self.hits, self.asked = self.hits + hits, self.asked + asked
        if self.asked < 1500:
            return
        if self.hits / self.asked > 0.9:
            if self.num_chars >= 12:
                self.gap = min(MAX_DISTANCE, max(4, int(self.gap * 1.5)))
            self.num_chars = min(56, math.ceil(self.num_chars * (1.4 if self.gap < 4 else 1.1)))
        self.hits = self.asked = 0.0


@dataclass
class Batch:
    """ids (B, T + 1); of each predicted token, (B, T): weight in the loss, kind, distance (-1 none)."""

    ids: Tensor
    weights: Tensor
    kinds: Tensor
    distances: Tensor


class SequenceMixer:
    """Endless training sequences: documentation, interrupted by passages that return later."""

    def __init__(self, documents: list[str], curriculum: Curriculum, seed: int) -> None:
        self.documents = documents
        self.sizes = [len(document) for document in documents]
        self.encoded = [encode(document) for document in documents]
        self.curriculum = curriculum
        self.rng = random.Random(seed)

    def batch(self, shape: tuple[int, int]) -> Batch:
        rows = [self._sequence(shape[1] + 1) for _ in range(shape[0])]
        ids, weights, kinds, distances = (torch.tensor(column) for column in zip(*rows))
        return Batch(ids, weights[:, 1:], kinds[:, 1:], distances[:, 1:])

    def _item(self):
        rng, limit = self.rng, self.curriculum.num_chars
        u = rng.random()
        kind: RecallKind = "letters" if limit < 12 or u < 0.45 else "keys" if u < 0.75 else "text"
        num_chars = rng.randint(max(6, limit // 3), limit)
        if kind == "text":
            num_chars *= 2
        num_keys = rng.randint(1, max(1, min(6, limit // 6)))
        return kind, *memory_item(
            encode, kind, rng, self.documents, num_chars=num_chars, num_keys=num_keys
        )

    def _gap(self, room: int) -> int:
        rng, gap = self.rng, min(self.curriculum.gap, room)
        if gap < 4 or rng.random() < 0.15:
            return 0
        return rng.randint(gap // 2, gap) if rng.random() < 0.5 else int(math.exp(rng.uniform(0, math.log(gap))))

    def _sequence(self, length: int):
        rng = self.rng
        ids, weights, kinds, distances = [BOS], [0.0], [0], [-1]

        def emit(tokens, weight=None, kind=0, distance=-1, counts=None):
            n = len(tokens)
            ids.extend(tokens)
            weights.extend(weight if weight is not None else [1.0] * n)
            kinds.extend([kind] * n)
            distances.extend([distance if c else -1 for c in counts] if counts else [-1] * n)

        document = rng.choices(self.encoded, self.sizes)[0]
        place = rng.randrange(max(1, len(document) - length // 2))
        waiting = []  # (due, return, kind, end of the original)
        next_item = rng.randint(1, 60)
        while len(ids) < length:
            if waiting and waiting[0][0] <= len(ids):
                _, (tokens, counts), kind, end = waiting.pop(0)
                w = [1.0 if c else NOISE_WEIGHT for c in counts]
                emit([NEWLINE], [1.0])
                emit(tokens, w, RECALL_KINDS.index(kind), len(ids) - end, counts)
                emit([NEWLINE], [1.0])
            elif len(ids) >= next_item:
                kind, original, again = self._item()
                room = length - len(ids) - 2 * len(original) - 4
                if room < 0:
                    next_item = length
                    continue
                emit([NEWLINE], [1.0])
                emit(original, [1.0 if kind == "text" else NOISE_WEIGHT] * len(original))
                end = len(ids)
                gap = self._gap(room)
                if gap:
                    emit([NEWLINE], [1.0])
                waiting.append((end + gap - 1, again, kind, end))
                waiting.sort(key=lambda entry: entry[0])
                spacing = 2.2 * (len(original) + 4)
                next_item = len(ids) + (int(rng.expovariate(1 / spacing)) if gap else len(again[0]) + 2 + int(rng.expovariate(1 / spacing)))
            else:
                if place >= len(document):
                    emit([BOS], [0.0])
                    document, place = rng.choices(self.encoded, self.sizes)[0], 0
                until = min([length, next_item, *(entry[0] for entry in waiting[:1])])
                chunk = document[place : place + until - len(ids)]
                place += len(chunk)
                emit(chunk)
        return ids[:length], weights[:length], kinds[:length], distances[:length]


class Scores:
    """Running recall accuracy by kind and distance bucket."""

    def __init__(self):
        self.hits = torch.zeros(3, len(DISTANCE_EDGES))
        self.asked = torch.zeros(3, len(DISTANCE_EDGES))

    def add(self, kinds, buckets, hit):
        self.hits.mul_(0.97).index_put_((kinds, buckets), hit.float(), accumulate=True)
        self.asked.mul_(0.97).index_put_((kinds, buckets), torch.ones_like(hit, dtype=torch.float), accumulate=True)

    def __str__(self):
        acc = self.hits / self.asked
        return " ".join(
            f"{kind[:1]}:" + "/".join(f"{a:.2f}" if a == a else "-" for a in row)
            for kind, row in zip(RECALL_KINDS, acc.tolist())
        )


def learning_rate(step: int, progress: float, peak: float) -> float:
    """Warm-up over 60 steps, constant, then linear to 2 % over the last 35 % of the time."""
    return peak * min(1.0, (step + 1) / 60, max(0.02, (1 - progress) / 0.35))


def optimizers(model, peak):
    """Muon for the layers' matrices, AdamW for everything else."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "layers" in name]
    others = [p for name, p in named if not (p.ndim == 2 and "layers" in name)]
    return [
        torch.optim.Muon(matrices, lr=peak, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=peak, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def save_checkpoint(path, model, opts, curriculum, elapsed, step, tokens):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict(), "optimizers": [o.state_dict() for o in opts],
                "curriculum": asdict(curriculum), "elapsed": elapsed, "step": step, "tokens": tokens},
               path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def train(args):
    torch.set_num_threads(args.threads)
    model = build_model(args.seed)
    modeling.mamba2_chunk_scan = batched_chunk_scan
    modeling.causal_conv1d_fn = shifted_conv
    curriculum = Curriculum()
    opts = optimizers(model, args.lr)
    before = 0.0; tokens = 0; step = 0; text_loss = None
    if args.resume:
        state = torch.load(args.resume)
        model.load_state_dict(state["model"])
        for o, s in zip(opts, state["optimizers"]): o.load_state_dict(s)
        curriculum = Curriculum(**state["curriculum"])
        before, tokens, step = state["elapsed"], state["tokens"], state["step"]
    mixer = SequenceMixer(training_text(), curriculum, args.seed + step)
    compiled = torch.compile(model, dynamic=False)
    scores = Scores()
    start = time.time(); saved = 0; done = 0; shape = SHORT
    while (elapsed := before + time.time() - start) < args.minutes * 60:
        progress = elapsed / (args.minutes * 60)
        if curriculum.gap > 330 or progress > 0.6: shape = LONG
        lr = learning_rate(step, progress, args.lr)
        for o in opts:
            for g in o.param_groups: g["lr"] = lr
        batch = mixer.batch(shape)
        with torch.autocast("cpu", torch.bfloat16):
            logits = compiled(batch.ids[:, :-1]).logits
        targets = batch.ids[:, 1:]
        losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
        loss = (losses * batch.weights).sum() / batch.weights.sum()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in opts:
            o.step(); o.zero_grad()
        step += 1; tokens += targets.numel(); done += targets.numel()
        with torch.no_grad():
            hit = logits.argmax(-1) == targets
            answers = batch.distances >= 0
            k, d, h = batch.kinds[answers], batch.distances[answers], hit[answers]
            hard = (k == 0) & (d >= curriculum.gap // 2)
            curriculum.report(int(h[hard].sum()), int(hard.sum()))
            scores.add(k, torch.bucketize(d, torch.tensor(DISTANCE_EDGES), right=True).clamp(max=3), h)
            plain = (batch.weights == 1) & ~answers
            tl = losses[plain].mean().item()
            text_loss = tl if text_loss is None else 0.97 * text_loss + 0.03 * tl
        if step % 20 == 0:
            print(f"{elapsed:6.0f}s step {step} lr {lr:.1e} loss {loss.item():.3f} text {text_loss:.3f} gn {norm:.2f} "
                  f"chars {curriculum.num_chars} gap {curriculum.gap} {scores} tok/s {done/(time.time()-start):.0f}", flush=True)
        if elapsed - saved > 180:
            saved = elapsed
            save_checkpoint(Path("/tmp/w/train_ckpt/checkpoint.pt"), model, opts, curriculum, elapsed, step, tokens)
    save_checkpoint(Path("/tmp/w/train_ckpt/checkpoint.pt"), model, opts, curriculum, elapsed, step, tokens)
    return model


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--resume", type=Path)
    args = parser.parse_args(argv)
    train(args)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

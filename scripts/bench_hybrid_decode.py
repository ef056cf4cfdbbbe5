"""Speed of a converted hybrid next to its source.

    python -m scripts.bench_hybrid_decode --threads 1 --json bench_hybrid_decode.json
    python -m scripts.bench_hybrid_decode --hidden-size 1024 --threads 1
    python -m scripts.bench_hybrid_decode --context 64 --num-new 16 --repetitions 2

The last line takes seconds. The model is the one that ships with the package, six layers of 192
channels, whose steps mostly wait for the dispatch of small operations; with `--hidden-size` its
layers are made as wide, with random weights, on which speed does not depend.

States are converted at `--state-ratio` in every code and replay length of `--codes` (`auto`,
`float16:1`, `int8:4`, ...), once with keys and values at 16 bits, by rank alone, and once with
few-bit latents, both at `--ratio`. Source and conversions read the same context in turns (A B A B),
batch 1. First, a conversion that keeps everything must give the source's logits. What comes out is
a table of medians in tokens per second, the ratio to the source, and, as last line, one JSON
object.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from cacheshrink_hybrid import convert_to_mla, plan_of
from cacheshrink_hybrid.demo import model_path
from cacheshrink_hybrid.demo.corpus import training_text
from cacheshrink_hybrid.text_tables import format_table

from .benchmark import (
    IDENTITY_TOLERANCE,
    GateError,
    common_arguments,
    environment,
    interleaved_speed,
    progress,
    quiet,
    ratios_to,
    relative_difference,
    report,
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common_arguments(parser)
    parser.add_argument("--hidden-size", type=int, help="multiple of 64; default: as shipped")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--num-new", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--ratio", type=float, default=4.0)
    parser.add_argument("--state-ratio", type=float, default=4.0)
    parser.add_argument("--codes", nargs="+", default=["auto", "float16:1", "int8:4"])
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    quiet()
    source = source_model(args.hidden_size)
    check_identity(source)
    models = {"source": source}
    for bits in (16, "auto"):
        for code in args.codes:
            name = f"cache_bits={bits}, states {code}"
            progress(name)
            states = {"state_ratio": args.state_ratio, **state_settings(code)}
            models[name] = converted(source, args.ratio, cache_bits=bits, **states)
    speeds = interleaved_speed(models, args.context, args.num_new, args.repetitions, args.seed)
    records = [
        {"model": name, **speed.medians(), **ratios_to(speed, speeds["source"])}
        for name, speed in speeds.items()
    ]
    shown = [{k: v for k, v in r.items() if not k.endswith("spread")} for r in records]
    print(format_table(shown))
    settings = {k: v for k, v in vars(args).items() if k != "json"}
    result = {"program": "bench_hybrid_decode", "environment": environment(), "settings": settings}
    plans = {n: plan_of(m).to_dict()["states"] for n, m in models.items() if n != "source"}
    report(result | {"runs": records, "state_plans": plans}, args.json)
    return 0


def state_settings(code: str) -> dict[str, object]:
    """`CODE` or `CODE:REPLAY` as settings of `convert_to_mla`."""
    dtype, _, replay = code.partition(":")
    return {"state_dtype": dtype, "replay_length": int(replay) if replay else None}


def source_model(hidden_size: int | None) -> PreTrainedModel:
    """The shipped hybrid, or one of its kind with random weights and this many channels."""
    if hidden_size is None:
        return AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()
    config = AutoConfig.from_pretrained(model_path(), dtype=torch.float32)
    head_dim = config.hidden_size // config.num_attention_heads
    growth = hidden_size / config.hidden_size
    config.update(
        {
            "hidden_size": hidden_size,
            "num_attention_heads": hidden_size // head_dim,
            "num_key_value_heads": hidden_size // head_dim // 2,
            "mamba_n_heads": config.mamba_expand * hidden_size // config.mamba_d_head,
            "intermediate_size": round(config.intermediate_size * growth),
            "shared_intermediate_size": round(config.shared_intermediate_size * growth),
        }
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def converted(source: PreTrainedModel, ratio: float, **settings) -> PreTrainedModel:
    model, _ = convert_to_mla(
        copy.deepcopy(source),
        ratio,
        tokenizer=AutoTokenizer.from_pretrained(model_path()),
        calibration_texts=training_text(),
        num_calibration_samples=8,
        metric="activation",
        verbose=False,
        **settings,
    )
    return model


@torch.no_grad()
def check_identity(source: PreTrainedModel) -> None:
    """Raises GateError if full rank, uncoded, does not give the source's logits."""
    exact = converted(source, 1.0, cache_bits=16, state_dtype="float32", replay_length=1)
    ids = torch.randint(3, source.config.vocab_size, (1, 96))
    found = relative_difference(exact, source, ids, (96, 32, 1))
    if found > IDENTITY_TOLERANCE:
        raise GateError(f"full rank differs from the source by {found:.1e}")


if __name__ == "__main__":
    sys.exit(main())

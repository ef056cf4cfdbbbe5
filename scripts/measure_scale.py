"""Time and memory of converting a model of about a billion parameters on CPU.

    python -m scripts.measure_scale --json measure_scale.json
    python -m scripts.measure_scale --layers 4 --hidden 512 --intermediate 1408 --vocab 2048 \
        --sequences 2
    python -m scripts.measure_scale --model DIRECTORY --text FILE --sequences 16 --threads 1

The first line takes about ten minutes on 2 cores and 7 GB of memory; the second fits a laptop. The
model is a random Llama, by default of the shape of TinyLlama-1.1B in float32, calibrated with the
Fisher metric (one backward pass) on random tokens; neither time nor memory depends on what the
tokens are. The third line converts a model of one's own, in float32, on stretches of a text. With
ten sequences or more, some are held out and the result is certified. Measured are the phases of
`convert_model` itself, by a clock around the functions that it calls, and the kernel's high-water
mark of resident memory, which is reset before each phase (Linux only).

First, ratio 1 on a small Llama must give the source's logits. What comes out is a table with
seconds, CPU seconds of all threads and memory peaks beyond the weights per phase, and, as last
line, one JSON object. The peak beyond the weights counts everything but the parameters, also Python
and its libraries; the growth counts from when the model was loaded.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from cacheshrink_hybrid import CompressionConfig, convert_model, plan_of
from cacheshrink_hybrid.freed_memory import return_freed_memory
from cacheshrink_hybrid.text_tables import format_table

from .benchmark import (
    IDENTITY_TOLERANCE,
    GateError,
    common_arguments,
    environment,
    live_bytes_per_token,
    quiet,
    relative_difference,
    report,
)

TARGET_BYTES = 2 * 2**30
SHAPE = ("layers", "hidden", "heads", "kv_heads", "intermediate", "vocab")
"""Settings of the random model."""
PHASES = {
    "calibrate": ("statistics.calibrate", "statistics.weight_statistics"),
    "hold out": ("statistics.held_out_text",),
    "factorize": ("convert.plan_model",),
    "install": ("convert.convert_in_place",),
    "certify": ("convert.certify",),
}
"""Phase -> functions of `cacheshrink_hybrid.conversion` that are timed as that phase, by the module
that calls them."""


class Phases:
    """Seconds and memory of named stretches of a program.

    Attributes:
        seconds, cpu_seconds: by phase, summed over its stretches.
        peaks: highest resident bytes by phase.
        highest: highest resident bytes since it was last set to 0, also between phases.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self.peaks: dict[str, int] = {}
        self.highest = 0

    @contextmanager
    def measured(self, phase: str) -> Iterator[None]:
        self.highest = max(self.highest, memory("VmHWM"))
        reset_peak()
        started, cpu_started = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            for found, elapsed in (
                (self.seconds, time.perf_counter() - started),
                (self.cpu_seconds, time.process_time() - cpu_started),
            ):
                found[phase] = found.get(phase, 0.0) + elapsed
            peak = memory("VmHWM")
            self.peaks[phase] = max(self.peaks.get(phase, 0), peak)
            self.highest = max(self.highest, peak)

    def wrap(self, phase: str, function: Callable) -> Callable:
        @wraps(function)
        def timed(*args, **kwargs):
            with self.measured(phase):
                return function(*args, **kwargs)

        return timed


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def memory(field: str) -> int:
    """`VmRSS` or `VmHWM` of this process in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}; this program needs Linux")


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if (args.model is None) != (args.text is None):
        parser.error("--model and --text go together; give both, or neither for a random model")
    torch.set_num_threads(args.threads)
    quiet()
    check_identity(args)
    phases = Phases()
    with phases.measured("build"):
        model = source_model(args)
    gc.collect()
    return_freed_memory()
    weights, parameters = weight_bytes(model), sum(p.numel() for p in model.parameters())
    resident = memory("VmRSS")
    whole, whole_cpu, peak = measured_conversion(model, args, phases)
    gc.collect()
    return_freed_memory()
    bytes_per_token = live_bytes_per_token(model, 16)
    plan = plan_of(model)
    # Uncoded latents are stored in the model's dtype, which plans count with 16 bits.
    expected = plan.bytes_per_token * (element_scale(model) if args.cache_bits == "16" else 1)
    if bytes_per_token != expected:
        raise GateError(f"the cache holds {bytes_per_token} bytes per token, planned {expected}")
    rows = [
        {
            "phase": phase,
            "seconds": seconds,
            "cpu_seconds": phases.cpu_seconds[phase],
            "peak_beyond_weights_bytes": phases.peaks[phase] - weights,
            "growth_bytes": phases.peaks[phase] - resident if phase != "build" else 0,
        }
        for phase, seconds in phases.seconds.items()
    ]
    result: dict[str, Any] = {
        "program": "measure_scale",
        "environment": environment(),
        "settings": _settings(args),
        "parameters": parameters,
        "weight_bytes": weights,
        "weight_bytes_after": weight_bytes(model),
        "resident_before_bytes": resident,
        "resident_after_bytes": memory("VmRSS"),
        "convert_seconds": whole,
        "convert_cpu_seconds": whole_cpu,
        "peak_beyond_weights_bytes": peak - weights,
        "growth_bytes": peak - resident,
        "target_met": peak - weights <= TARGET_BYTES,
        "compression_ratio": plan.compression_ratio,
        "phases": rows,
    }
    print(json.dumps(result["environment"], indent=2))
    print(format_table([table_row(row) for row in rows]))
    print(
        f"{parameters / 1e6:.0f} M parameters, {weights / 2**30:.2f} GiB; converted in "
        f"{whole:.1f} s, {whole_cpu:.1f} s of CPU time; peak beyond the weights "
        f"{(peak - weights) / 2**30:.3f} GiB (of it {(resident - weights) / 2**30:.3f} GiB before "
        "the conversion began)"
    )
    report(result, args.json)
    return 0


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What the results depend on; not the shape of a random model where there is none."""
    idle = SHAPE if args.model is not None else ()
    settings = {k: v for k, v in vars(args).items() if k not in ("json", "text", *idle)}
    return settings | {"text": None if args.text is None else args.text.name}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.measure_scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", metavar="DIRECTORY", help="convert this model, not a random one")
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="what that model is calibrated on"
    )
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--intermediate", type=int, default=5632)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--sequences", type=int, default=8, help="calibration sequences")
    parser.add_argument("--length", type=int, default=512, help="tokens of each")
    parser.add_argument("--ratio", type=float, default=4.0)
    parser.add_argument("--method", default="auto")
    parser.add_argument("--metric", default="fisher")
    parser.add_argument("--cache-bits", default="auto", choices=["16", "8", "4", "auto"])
    common_arguments(parser)
    return parser


def source_model(args: argparse.Namespace) -> PreTrainedModel:
    if args.model is None:
        return random_llama(args, args.layers)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    for parameter in model.parameters():  # in memory of its own, not pages of a file
        parameter.data = parameter.data.clone()
    return model


def random_llama(args: argparse.Namespace, layers: int) -> PreTrainedModel:
    torch.manual_seed(args.seed)
    config = LlamaConfig(
        hidden_size=args.hidden,
        num_hidden_layers=layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        intermediate_size=args.intermediate,
        vocab_size=args.vocab,
        max_position_embeddings=2048,
    )
    return LlamaForCausalLM(config).eval()


def random_sequences(args: argparse.Namespace, number: int, length: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(args.seed)
    return list(torch.randint(args.vocab, (number, 1, length), generator=generator))


def calibration_sequences(args: argparse.Namespace) -> list[torch.Tensor]:
    """Token ids, (1, `--length`) each: random ones, or stretches spread evenly over `--text`."""
    if args.model is None:
        return random_sequences(args, args.sequences, args.length)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    text = args.text.read_text(encoding="utf-8")
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    starts = torch.linspace(0, ids.shape[1] - args.length, args.sequences).long().tolist()
    return [ids[:, start : start + args.length] for start in starts]


def check_identity(args: argparse.Namespace) -> None:
    """Ratio 1 gives the source's logits on a Llama of one small layer stack.

    Raises:
        GateError: otherwise.
    """
    small = argparse.Namespace(
        **vars(args) | {"hidden": 256, "intermediate": 512, "heads": 8, "kv_heads": 4, "vocab": 512}
    )
    source = random_llama(small, layers=2)
    exact = copy.deepcopy(source)
    config = CompressionConfig(
        compression_ratio=1.0,
        compression_method=args.method,
        metric=args.metric,
        cache_bits=16,
    )
    convert_model(exact, config, random_sequences(small, 2, 64))
    ids = random_sequences(small, 1, 48)[0]
    difference = relative_difference(exact, source, ids, [1, 48])
    if difference > IDENTITY_TOLERANCE:
        raise GateError(f"ratio 1 changes the logits by {difference:.2e}")


def measured_conversion(
    model: PreTrainedModel, args: argparse.Namespace, phases: Phases
) -> tuple[float, float, int]:
    """Convert `model` in place; seconds and CPU seconds in all, and the highest resident bytes."""
    config = CompressionConfig(
        compression_ratio=args.ratio,
        compression_method=args.method,
        metric=args.metric,
        cache_bits=int(args.cache_bits) if args.cache_bits.isdigit() else args.cache_bits,
    )
    sequences = calibration_sequences(args)
    with ExitStack() as stack:
        for phase, names in PHASES.items():
            for place in names:
                home, _, name = place.partition(".")
                module = importlib.import_module(f"cacheshrink_hybrid.conversion.{home}")
                timed = phases.wrap(phase, getattr(module, name))
                stack.enter_context(mock.patch.object(module, name, timed))
        reset_peak()
        phases.highest = 0
        started, cpu_started = time.perf_counter(), time.process_time()
        convert_model(model, config, sequences, progress=True)
        seconds = time.perf_counter() - started
        cpu_seconds = time.process_time() - cpu_started
    return seconds, cpu_seconds, max(phases.highest, memory("VmHWM"))


def weight_bytes(model: PreTrainedModel) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def element_scale(model: PreTrainedModel) -> float:
    """Bytes of this model's elements over the 2 bytes that plans count with."""
    return next(model.parameters()).element_size() / 2


def table_row(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "phase": row["phase"],
        "seconds": row["seconds"],
        "CPU seconds": row["cpu_seconds"],
        "peak beyond weights GiB": row["peak_beyond_weights_bytes"] / 2**30,
        "growth GiB": row["growth_bytes"] / 2**30,
    }


if __name__ == "__main__":
    sys.exit(main())

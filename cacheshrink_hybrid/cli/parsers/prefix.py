"""Serve requests that begin alike by every strategy of prefix reuse, in equal bytes.

    cacheshrink-hybrid prefix [--workloads mixed chats ...] [--trace FILE] [--json out.json]

A simulator by tokens: the tree, the evictions and the placements are the engine's own, over frames
without content, in one budget for rows, states and the request that runs. A placement says where in
prompts states are kept, an eviction what goes first. Prefill costs what it was measured to cost
with --measure. Printed: the share of all prompts' tokens that need not be computed. --trace takes
files in Mooncake's format (JSON lines with timestamp, input_length, output_length, hash_ids), and
--texts real texts that begin prompts. Rows of --json have workload, width, placement, eviction,
budget_bytes and saved_share, and how it came; --requests-jsonl has the same request by request.
Some minutes on one core; fewer --requests, --placements or --evictions take less.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from ...demo.corpus import PYTHON_DOCS
from ...errors import ConfigError
from ...evaluation.prefixes.workloads import BESIDE, SYNTHETIC
from ...evaluation.reference_models import REFERENCE_MODELS
from ...pool.eviction import NAMES, policy_of
from ...pool.prefixes.placement import placement_of
from ..flags import NOT_SET, new_parser
from ..preflight import Model, NamedOrFile, Number, OutputFile, Plot, TextFile, seed, whole

WIDTHS = {
    "fp32 states": (1.0, "fp32"),
    "bf16 states": (1.0, "bf16"),
    "int8 states": (1.0, "int8"),
    "4x, int8 states": (4.0, "int8"),
}
"""Ratio of keys and values at 16 bits, and how states are stored."""
PLACEMENTS = (
    "last",
    "align_528",
    "block_512",
    "balanced_3",
    "log_1024",
    "dp_3",
    "branch",
    "marconi",
    "grid",
    "learned",
)
EVICTIONS = ("lru", "lru_path", "lru_cap_3", "seconds_per_byte", "marconi", "learned")
BUDGETS = (0.08, 0.25)


def parser() -> argparse.ArgumentParser:
    made = new_parser("prefix", __doc__, "")
    made.add_argument(
        "--workloads",
        nargs="*",
        choices=SYNTHETIC,
        default=list(SYNTHETIC),
        help=f"of {', '.join(SYNTHETIC)} (default: all)",
    )
    made.add_argument(
        "--trace",
        nargs="+",
        type=TextFile(),
        default=[],
        help=f"recorded traces beside them (default: {NOT_SET})",
    )
    made.add_argument(
        "--texts",
        nargs="+",
        type=NamedOrFile((PYTHON_DOCS,)),
        default=[],
        help=f"{PYTHON_DOCS}, or files of texts (JSON lines with text, or text with two empty "
        f"lines between them) that begin prompts, beside them (default: {NOT_SET})",
    )
    made.add_argument("--requests", type=whole(), default=500, help="of each (default: 500)")
    made.add_argument("--seed", type=seed(), default=0, help="of the workloads (default: 0)")
    made.add_argument(
        "--beside",
        type=Number(float, 0.01, 1e6),
        default=BESIDE,
        help="documents, conversations and the like that go on at once, about; each starts by a "
        f"Poisson process, and so do its requests (default: {BESIDE:g})",
    )
    made.add_argument(
        "--model",
        choices=[model.name for model in REFERENCE_MODELS],
        default="Qwen3-Next-80B",
        help="whose sizes rows and states have (default: Qwen3-Next-80B)",
    )
    made.add_argument(
        "--widths",
        nargs="+",
        choices=WIDTHS,
        default=["bf16 states"],
        help=f"of {', '.join(WIDTHS)} (default: bf16 states)",
    )
    made.add_argument(
        "--placements",
        nargs="+",
        default=list(PLACEMENTS),
        help=f"values of prefix_placement (default: {' '.join(PLACEMENTS)})",
    )
    made.add_argument(
        "--evictions",
        nargs="+",
        default=list(EVICTIONS),
        help=f"of {', '.join(NAMES)} (default: {' '.join(EVICTIONS)})",
    )
    made.add_argument(
        "--budgets",
        nargs="+",
        type=Number(float, 1e-4, 100.0),
        default=list(BUDGETS),
        help="as shares of the bytes that rows of all distinct tokens take at 16 bits, in every "
        f"width (default: {' '.join(map(str, BUDGETS))})",
    )
    made.add_argument(
        "--measure",
        type=Model(),
        default=None,
        metavar="MODEL",
        help="whose prefill says what tokens cost (default: the shipped model)",
    )
    made.add_argument(
        "--json", type=OutputFile(), default=None, help=f"write rows here (default: {NOT_SET})"
    )
    made.add_argument(
        "--plot",
        type=Plot(),
        default=None,
        help=f"draw what is saved against states kept, here (default: {NOT_SET})",
    )
    made.add_argument(
        "--requests-jsonl",
        type=OutputFile(),
        default=None,
        help="write every request of every run here, with time, strategy, tokens, those that were "
        f"alike and those saved, reason and seconds (default: {NOT_SET})",
    )
    made.add_argument(
        "--plot-requests",
        type=Plot(),
        default=None,
        help="draw how far prompts are alike, where they are gone on from, and the share of the "
        f"former that the latter is, here (default: {NOT_SET})",
    )
    return made


def faults(given: argparse.Namespace) -> Iterator[str]:
    if not (given.workloads or given.trace or given.texts):
        yield "no --workloads, no --trace and no --texts; give one"
    for flag, names, row_of in (
        ("--placements", given.placements, placement_of),
        ("--evictions", given.evictions, policy_of),
    ):
        for name in names:
            try:
                row_of(name)
            except ConfigError as error:
                yield f"{flag} {name}: {error}"
    sources = [*given.workloads, *(Path(path).stem for path in (*given.trace, *given.texts))]
    for name in dict.fromkeys(sources):
        if sources.count(name) > 1:
            yield f"{sources.count(name)} workloads are called {name}; give each a name of its own"

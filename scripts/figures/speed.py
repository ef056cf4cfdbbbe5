"""What is gained in memory and spent in time. Each takes the results of its study, in order."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from .markdown import table

Results = list[dict[str, Any]]

_ALLOCATORS = {
    "fixed_dual 0.474": "two fixed pools",
    "lcm": "pages of a common multiple",
    "uniform_page": "uniform pages",
    "two_ended": "a compacting allocator",
}


def allocators(results: Results) -> str:
    replays = results[0]["replays"]
    models = list(dict.fromkeys(replay["model"] for replay in replays))
    running = {
        (replay["width"], replay["allocator"], replay["model"]): replay["concurrency"]
        for replay in replays
        if replay["trace"] == "churn" and "concurrency" in replay
    }
    rows = []
    for width in dict.fromkeys(replay["width"] for replay in replays):
        for other, name in _ALLOCATORS.items():
            cells = []
            for model in models:
                least = running.get((width, other, model))
                bound = running[width, "bytes alone", model]
                frames = running[width, "frames", model]
                cells.append(f"{frames / least:.2f} ({bound / least:.2f})" if least else "-")
            rows.append((f"{width}, over {name}", *cells))
    return table(("times as many requests", *models), rows)


def first_tokens(results: Results) -> str:
    """Time to the first token of prompts that begin like those before them."""
    return table(
        (
            "model",
            "by",
            "cold, ms",
            "after others, ms",
            "times shorter",
            "keeping, over cold",
            "equal",
        ),
        (
            (
                run["model"],
                f"`{run['by']}`" if "(" in run["by"] else run["by"],
                f"{run['cold ms']:.0f}",
                f"{run['warm ms']:.0f}",
                f"{run['cold / warm']:.0f}",
                f"{run['keeping / cold']:.2f}",
                run["equal outputs"],
            )
            for result in results
            for run in result["runs"]
        ),
    )


def pooled_decoding(results: Results) -> str:
    return table(
        ("model", "batch", "dense, ms/step", "pooled, ms/step", "pooled over dense, tokens/s"),
        (
            (
                run["model"],
                str(run["batch"]),
                f"{run['dense ms/step']:.1f}",
                f"{run['pooled ms/step']:.1f}",
                f"{run['pooled / dense tokens/s']:.2f}",
            )
            for run in results[0]["runs"]
        ),
    )


def long_contexts(results: Results) -> str:
    """Tokens per second over the source's by context, and how a step's time grows."""
    records = results[0]["records"]
    contexts = list(dict.fromkeys(record["context"] for record in records))
    found = {(record["reader"], record["context"]): record for record in records}
    slopes = {record["reader"]: record["over_source"] for record in results[0]["growth"]}
    rows = []
    for reader in dict.fromkeys(record["reader"] for record in records):
        row = [reader.replace("_4x", ", 4x").replace("_6x", ", 6x")]
        for context in contexts:
            record = found.get((reader, context))
            if record is None:
                row.append("")
            elif reader == "source":
                row.append(f"1 ({record['ms_per_step']:.0f} ms)")
            else:
                row.append(f"{record['ratio']:.2f}")
        row.append(f"{slopes[reader]:.2f}" if reader in slopes else "")
        rows.append(row)
    lengths = (f"{n:,} tokens" for n in contexts)
    return table(("tokens/s over the source", *lengths, "growth with the context"), rows)


def hybrid_decoding(results: Results) -> str:
    widths = [result["settings"]["hidden_size"] or 192 for result in results]
    names = [run["model"] for run in results[0]["runs"][1:]]
    shares = [{run["model"]: run["decode_ratio"] for run in result["runs"]} for result in results]
    return table(
        ("share of the source's tokens/s", *(f"{width} channels" for width in widths)),
        ((name, *(f"{share[name]:.2f}" for share in shares)) for name in names),
    )


def beside_the_peer(results: Results) -> str:
    rows = []
    for record in results[0]["records"]:
        speed = (record.get("speed") or {}).get("2048")
        if speed:
            ours = record["package"] == "cacheshrink_hybrid"
            name = "this package" if ours else f"cacheshrink 0.1.5, {record['method']}"
            rows.append(
                (
                    name,
                    f"{speed['decode_tokens_per_second']:.1f}",
                    f"{speed['source_decode_tokens_per_second']:.1f}",
                    f"{speed['decode_ratio']:.2f}",
                )
            )
    return table(("decoding, RoPE, 2x, 16 bit", "tokens/s", "its source", "share"), rows)


def training_speed(results: Results) -> str:
    speeds = results[0]["throughput"]["tokens_per_second"]
    base = median(speeds["source_kv"])
    names = {
        "source_kv": "the source's K and V projections, by transformers",
        "lm": "the converted model, from the text alone",
        "distillation": "the converted model, with the original beside it (default)",
    }
    return table(
        ("training", "tokens/s", "share"),
        (
            (name, f"{median(speeds[key]):,.0f}", f"{median(speeds[key]) / base:.2f}")
            for key, name in names.items()
        ),
    )


def scale(results: Results) -> str:
    rows = []
    for result in results:
        settings = result["settings"]
        if settings["model"] is None:
            name = f"random Llama, {settings['layers']} layers of {settings['hidden']}"
        else:
            name = Path(settings["model"]).name
        rows.append(
            (
                name,
                f"{result['parameters'] / 1e6:,.0f} M",
                f"{settings['sequences'] * settings['length']:,}",
                f"{result['convert_cpu_seconds']:.0f}",
                f"{result['growth_bytes'] / 2**30:.2f}",
            )
        )
    head = "model", "parameters", "calibration tokens", "CPU seconds", "GiB beyond the loaded model"
    return table(head, rows)


def predicted_reading(results: Results) -> str:
    """What the model of a device says of a step's reading, and of whole steps over the source's at
    some batches; nothing of it is measured."""
    settings = results[0]["settings"]
    title = f"{settings['name']}, {settings['context']:,} tokens, {settings['device']}, predicted"
    head = (
        title,
        "MiB moved",
        "billion products",
        "ms",
        "over FlashAttention",
        "waits for",
        *(f"step, batch {batch}" for batch in settings["batches"]),
    )
    rows = [
        (
            row["kind"] + (f", {row['ratio']:g}x" if row["ratio"] > 1 else ", 16 bits"),
            f"{row['bytes'] / 2**20:,.0f}",
            f"{row['products'] / 1e9:,.1f}",
            f"{1e3 * row['seconds']:.2f}",
            f"{row['speedup']:.2f}",
            row["waits_for"],
            *(
                f"{step['speedup']:.2f}" if row["ratio"] > 1 else f"{1e3 * step['seconds']:.1f} ms"
                for step in row["steps"]
            ),
        )
        for row in results[0]["rows"]
    ]
    return table(head, rows)

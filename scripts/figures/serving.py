"""Tables of the engine and of serving. Each takes the results of its study, in order."""

from __future__ import annotations

from typing import Any

from .markdown import table

Results = list[dict[str, Any]]


def engine(results: Results) -> str:
    return table(
        ("serving", "requests", "tokens/s", "speed-up", "peak MiB", "preemptions", "equal outputs"),
        (
            (
                run["serving"],
                str(run["requests"]),
                f"{run['tokens/s']:.0f}",
                f"{run['speed-up']:.1f}" if "speed-up" in run else "",
                f"{run['peak MiB']:.1f}" if "peak MiB" in run else "",
                str(run.get("preemptions", "")),
                run.get("equal outputs", ""),
            )
            for run in results[0]["runs"]
        ),
    )


def serving(results: Results) -> str:
    """Tokens per second of answers from equal bytes of cache."""
    head = (
        "serving",
        "tokens of prompt and answer",
        "requests at once",
        "of which fit",
        "cache, MiB",
        "tokens/s",
        "speed-up",
    )
    return table(
        head,
        (
            (
                run["serving"],
                f"{result['prompt']} + {result['output']}",
                str(result["clients"]),
                str(run["requests that fit"]),
                f"{result['cache_bytes'] / 2**20:.1f}",
                f"{run['tokens/s']:.1f}",
                f"{run['speed-up']:.2f}",
            )
            for result in results
            for run in result["runs"]
        ),
    )


def load(results: Results) -> str:
    """Tokens per second of a server over those of its engine, and how long clients wait."""
    (result,) = results
    return table(
        (
            "clients",
            "answered",
            "gone on the way",
            "refused",
            "tokens/s",
            "over the engine itself",
            "first token, p50 / p99, ms",
            "between tokens, p50 / p99, ms",
        ),
        (
            (
                f"{result['clients']}, {run['run']}",
                str(run["answered"]),
                str(run["gone"]),
                str(run["refused"]),
                f"{run['tokens/s']:.0f}",
                "" if run["gone"] else f"{result['share']:.2f}",
                f"{run['first p50 ms']:.0f} / {run['first p99 ms']:.0f}",
                f"{run['between p50 ms']:.0f} / {run['between p99 ms']:.0f}",
            )
            for run in result["runs"]
        ),
    )


def drafts(results: Results) -> str:
    """Tokens per second with drafts by look-up over those without, and how many drafts stay."""
    rows = []
    for result in results:
        for record in result["records"]:
            if record["drafts"]:
                accepted = record["accepted"]
                rows.append(
                    (
                        result["model"],
                        record["task"],
                        str(record["drafts"]),
                        f"{record['speed-up']:.2f}",
                        "" if accepted is None else f"{100 * accepted:.0f} %",
                        "equal" if record["parts at"] is None else f"parts at {record['parts at']}",
                    )
                )
    head = "model", "task", "drafts a step", "tokens/s over none", "drafts that stay", "answer"
    return table(head, rows)


def predicted_serving(results: Results) -> str:
    """What arithmetic says of a large model on many devices; nothing of it is measured."""
    settings = results[0]["settings"]
    requests, context = settings["requests"], settings["context"]
    title = f"{settings['name']}, {settings['devices']} x {settings['device']}, predicted"
    head = (
        title,
        "devices that hold it once",
        "bytes per token and device",
        "million tokens that fit",
        f"step of {requests} requests of {context:,} tokens",
    )
    rows = [
        (
            row["format"],
            f"{row['ranks']}, {row['groups']} times" if row["groups"] > 1 else str(row["ranks"]),
            f"{row['bytes per token and device']:,}",
            f"{row['tokens'] / 1e6:.1f}",
            f"{1e3 * row['step seconds']:.1f} ms" if row["fits"] else "do not fit",
        )
        for row in results[0]["rows"]
    ]
    return table(head, rows)


def in_vllm(results: Results) -> str:
    """Whether vLLM gives the tokens of `generate()`, and how many of them it has room for."""
    head = (
        "in vLLM",
        "requests with the same tokens",
        "lead where the others part, in nats",
        "preemptions",
        "tokens from kept prefixes",
    )
    rows, notes = [], []
    for result in results:
        name = f"{result['model']}, {result['compression_ratio']:.3g}x"
        rows += [
            (
                f"{name}, {run['run']}",
                f"{run['requests with the same tokens']} of {run['requests']}",
                ", ".join(f"{lead:.1g}" for lead in run["leads where others part"]) or "none",
                f"{run['preemptions']:,}",
                f"{run['tokens from kept prefixes']:,}",
            )
            for run in result["runs"]
        ]
        if "tokens in 1 GiB" in result:
            fit = result["tokens in 1 GiB"]
            notes.append(
                f"{name}: {fit['converted']:,} tokens fit in 1 GiB, of the source "
                f"{fit['source']:,}: {fit['converted'] / fit['source']:.2f} times as many."
            )
    return "\n\n".join((table(head, rows), *notes))

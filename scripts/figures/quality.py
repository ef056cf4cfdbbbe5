"""What is lost: tables of perplexity and recall. Each takes the results of its study, in order."""

from __future__ import annotations

from typing import Any

from .markdown import percent, table

Results = list[dict[str, Any]]

_OURS, _PEER = "cacheshrink_hybrid", "cacheshrink"
_METHODS = {
    (_OURS, "auto:auto"): "coded (default)",
    (_OURS, "per_head:auto"): "coded, keys per head",
    (_OURS, "rotate:auto"): "coded, keys stored rotated",
    (_OURS, "auto:16"): "16-bit latents, rank alone",
    (_OURS, "separate:16"): "16-bit, K and V separate",
    (_PEER, "separate"): "cacheshrink 0.1.5, separate",
    (_PEER, "auto"): "cacheshrink 0.1.5, auto",
}
_STATES = {
    "2:float32:1": "2x, rank",
    "2:float16:1": "2x, float16",
    "4:float16:1": "4x, rank and float16",
    "8:int8:2": "8x, rank and int8, every 2 tokens",
    "2:float32:1:prune": "2x, channels dropped",
    "4:float32:1:prune": "4x, channels dropped",
}

_MODELS = {
    "model": "shipped hybrid",
    "demo": "shipped hybrid",
    "mamba2-recall": "Mamba-2 alone",
}
_VARIANTS = {
    "stiefel": "default",
    "unconstrained": "bases without the manifold",
    "bare": "without norms, queries, outputs",
    "text": "from the text alone",
}


def demo(results: Results) -> str:
    distances = (64, 256, 1024)
    rows = []
    for record in results[0]["models"]:
        source = record["model"] == "source"
        rows.append(
            (
                "source, 16 bit" if source else record["model"],
                str(record["bytes_per_token"]),
                f"{record['perplexity']:.3f}",
                "" if source else record["perplexity change"],
                " / ".join(f"{record[f'recall@{distance}']:.3f}" for distance in distances),
                f"{record['live KV bytes, 1024 tokens']:,}",
            )
        )
    head = (
        "model",
        "KV bytes per token",
        "perplexity",
        "change",
        "recall at 64 / 256 / 1024 tokens",
        "live KV bytes, 1024 tokens",
    )
    return table(head, rows)


def peers(results: Results) -> str:
    records = [record for result in results for record in result["records"]]
    models = list(dict.fromkeys(record["checkpoint"] for record in records))
    found = {
        (record["ratio"], record["package"], record["method"], record["checkpoint"]): percent(
            record["perplexity_increase_percent"]
        )
        for record in records
    }
    rows = []
    for ratio in sorted({record["ratio"] for record in records} - {1.0}):
        for (package, method), name in _METHODS.items():
            cells = [found.get((ratio, package, method, model), "") for model in models]
            if any(cells):
                rows.append((f"{ratio:g}x, {name}", *cells))
    return table(("perplexity over the source", *models), rows)


def mla(results: Results) -> str:
    records = [record for result in results for record in result["records"]]
    found = {(r["model"], r["ratio"], r["method"]): r for r in records}
    methods = list(dict.fromkeys(record["method"] for record in records))
    rows = []
    for model, ratio in dict.fromkeys((record["model"], record["ratio"]) for record in records):
        own = [found[model, ratio, method] for method in methods]
        rows.append(
            (
                f"{model}, {ratio:g}x",
                str(own[0]["bytes per token"]),
                str(own[0]["rotary"]),
                *(f"{one['added loss']:.4f} ± {one['error']:.4f}" for one in own),
            )
        )
    return table(("nats per token over the source", "bytes per token", "rotary", *methods), rows)


def trained_mla(results: Results) -> str:
    """Ours and others by steps of fine-tuning, and the share of ours in what the others lose."""
    records = results[0]["records"]
    found = {(r["model"], r["ratio"], r["method"], r["steps"]): r for r in records}
    lines = []
    for model, ratio, method in dict.fromkeys(key[:3] for key in found):
        steps = [key[3] for key in found if key[:3] == (model, ratio, method)]
        ours = [found[model, ratio, "ours", count]["added loss"] for count in steps]
        own = [found[model, ratio, method, count] for count in steps]
        share = [one / other["added loss"] for one, other in zip(ours, own, strict=True)]
        lines += [
            (
                f"{model}, {ratio:g}x",
                method,
                str(record["steps"]),
                f"{record['tokens']:,}",
                f"{record['added loss']:.4f} ± {record['error']:.4f}",
                "" if method == "ours" else f"{part:.2f}",
            )
            for record, part in zip(own, share, strict=True)
        ]
    return table(("", "split", "steps", "tokens", "nats per token", "ours / this"), lines)


def sweep(results: Results) -> str:
    return table(
        ("", "KV bytes per token", "ratio", "perplexity", "change"),
        (_point(point) for point in results[0]["points"]),
    )


def _point(point: dict[str, Any]) -> tuple[str, ...]:
    return (
        point["model"],
        str(point["bytes_per_token"]),
        f"{point['ratio']:.3g}",
        f"{point['perplexity']:.3f}",
        percent(point["change_percent"]),
    )


def native_latents(results: Results) -> str:
    """Perplexity of models that cache latents by themselves, and what one of them can say again."""
    *sweeps, recalled = results
    names = "babyllama-char361, exported", "mla-recall"
    lines = [
        (name, *_point(point))
        for name, result in zip(names, sweeps, strict=True)
        for point in result["points"]
    ]
    head = ("", "KV bytes per token", "ratio", "perplexity", "change")
    source, coded = recalled["models"].values()
    said = (
        ("source" if one is source else "4x", *(f"{one[d]['mean']:.3f}" for d in source))
        for one in (source, coded)
    )
    distances = (f"recall at {distance} tokens" for distance in source)
    return f"{table(('model', *head), lines)}\n\n{table(('mla-recall', *distances), said)}"


def drift(results: Results) -> str:
    rows = []
    kinds = sorted({record["read"] for result in results for record in result["records"]})
    for result in results:
        model = result["settings"]["model"]
        named: dict[str, dict[str, str]] = {}
        for record in result["records"]:
            name = f"{model}, {record['ratio']:g}x, {record['samples']} x {record['calibrated_on']}"
            if record["setting"] != "default":
                name += f", {record['setting']}"
            cell = percent(record["increase_percent"])
            if record.get("standard_error") is not None:
                cell += f" ± {record['standard_error']:.2f}"
            named.setdefault(name, {})[record["read"]] = cell
        rows += [(name, *(row.get(kind, "") for kind in kinds)) for name, row in named.items()]
    return table(("calibrated on; perplexity over the source, read:", *kinds), rows)


def states(results: Results) -> str:
    rows = []
    for result in results:
        points = {point["point"]: point for point in result["points"]}
        model = result["arguments"]["model"]
        model = _MODELS.get(model, model)
        if result["arguments"]["recall_samples"] == 0:
            model += ", calibrated on text alone"
        rows.append(
            (
                model,
                "perplexity",
                f"{points['source']['perplexity']:.3f}",
                *tuple(percent(points[p]["change %"]) if p in points else "" for p in _STATES),
            )
        )
        if "recall 64" in points["source"]:
            values = (points[p]["recall 64"] if p in points else None for p in ("source", *_STATES))
            rows.append((model, "recall at 64", *("" if v is None else f"{v:.3f}" for v in values)))
    return table(("model", "measured", "source", *_STATES.values()), rows)


def long_states(results: Results) -> str:
    drift = results[0]["drift"]
    changes = [stretch["change %"] for stretch in drift["stretches"]]
    return table(
        ("coded states against float32 states of the same ranks", "perplexity"),
        (
            ("first quarter", percent(drift["first quarter %"])),
            ("last quarter", percent(drift["last quarter %"])),
            ("best thousand tokens", percent(min(changes))),
            ("worst thousand tokens", percent(max(changes))),
        ),
    )


def finetuning(results: Results) -> str:
    rows = []
    for result in results:
        scored = "validation stories" if result["settings"]["validation"] else "held-out"
        for record in result["records"]:
            change = f"{record['before_percent']:+.1f} %", f"{record['after_percent']:+.1f} %"
            recall = ""
            if "recall_before" in record:
                recall = f"{record['recall_before']:.3f} to {record['recall_after']:.3f}"
            ratio, bits, *state = record["case"].split(":")
            case = f"{ratio}x {'coded' if bits == 'auto' else 'by rank alone'}"
            case += "".join(f", states {ratio}x" for ratio in state)
            variant = _VARIANTS[record["variant"]]
            if record["learning_rate_scale"] != 1:
                variant += f", steps x {record['learning_rate_scale']:g}"
            model = _MODELS.get(record["checkpoint"], record["checkpoint"])
            row = (model, case, variant, scored, str(record["seed"]), *change, recall)
            rows.append(row)
    head = ("model", "case", "trained", "text", "seed", "before", "after", "recall")
    return table(head, rows)


def retrieval(results: Results) -> str:
    """Exact answers, and nats that a code's tokens lose, of the source and its conversions."""
    names = [name.rsplit("_", 1)[-1] for name in list(results[0]["models"])[1:]]
    head = ["", "source finds", *(f"{name} finds" for name in names)]
    head += [f"{name}: nats per token of the code" for name in names]
    rows = []
    runs = [[model["results"] for model in run["models"].values()] for run in results]
    for source, *others in (cases for run in runs for cases in zip(*run, strict=True)):
        row = [f"{source['task']}, {source['length']} tokens", f"{source['exact']:.3f}"]
        row += [_with_error(one["exact"], one["exact_change_error"]) for one in others]
        row += [
            _with_error(one["log_probability_change"], one["log_probability_change_error"], "+")
            for one in others
        ]
        rows.append(row)
    return table(head, rows)


def _with_error(value: float, error: float, sign: str = "") -> str:
    return f"{value:{sign}.3f} +- {error:.3f}"


def lost_by_groups(results: Results) -> str:
    """Predicted losses of keys and values by groups of heads; a row for each ratio."""
    settings, records = results[0]["settings"], results[0]["records"]
    groups = sorted({record["groups"] for record in records})
    found = {(record["ratio"], record["groups"]): record for record in records}
    head = (
        f"{settings['model']}, predicted loss in nats per token",
        *("1 group of heads" if n == 1 else f"{n} groups" for n in groups),
    )
    rows = [
        (f"{ratio:g}x", *(f"{found[ratio, n]['held-out loss']:.4f}" for n in groups))
        for ratio in sorted({record["ratio"] for record in records})
    ]
    return table(head, rows)

"""Print what a model caches per layer, from its config alone; no weights are loaded.

    cacheshrink-hybrid inspect MODEL [--lengths 1024 8192]

MODEL is a directory with a config.json (of a source or a converted model), or a name on the Hub.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoConfig

from ..checkpoint import PLAN_NAME, source_config
from ..errors import ConfigError
from ..families import model_spec
from ..latent_model import PLAN_ATTRIBUTE
from ..plan import CompressionPlan, format_table


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="cacheshrink-hybrid inspect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="directory with a config.json, or a name")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[1024, 8192, 32768], help="context lengths"
    )
    parser.add_argument("--trust-remote-code", action="store_true")
    given = parser.parse_args(argv)
    if (Path(given.model) / PLAN_NAME).is_file():
        config = source_config(Path(given.model))
    else:
        try:
            config = AutoConfig.from_pretrained(
                given.model, trust_remote_code=given.trust_remote_code
            )
        except OSError as error:
            raise ConfigError(f"no config in {given.model!r}: {error}") from error
        config = config.get_text_config(decoder=True)
    spec = model_spec(config)
    plan_values = getattr(config, PLAN_ATTRIBUTE, None)
    plan = CompressionPlan.from_dict(plan_values) if plan_values else None
    if plan is None:
        records = [
            {
                "layer": layer.layer_idx,
                "mixer": layer.mixer or "-",
                "attention": _attention(layer.attention),
                "KV B/token": layer.bytes_per_token,
            }
            for layer in spec.layers
        ]
        print(format_table(records))
        print(f"{spec.model_type}: {spec.bytes_per_token} KV bytes per token at 16 bits")
    else:
        print(plan.table(spec))
    stored = {
        idx: latent.bytes_per_token
        for latent in (plan.latents if plan else ())
        for idx in latent.layer_ids
    }
    totals = []
    for length in given.lengths:
        source = after = 0
        for layer in spec.attention_layers:
            assert layer.attention is not None
            held = min(length, layer.attention.sliding_window or length)
            source += held * layer.bytes_per_token
            after += held * stored.get(layer.layer_idx, layer.bytes_per_token)
        record: dict[str, object] = {"tokens": length, "KV MiB": source / 2**20}
        if plan is not None:
            record |= {"stored MiB": after / 2**20, "ratio": source / after}
        totals.append(record)
    print(format_table(totals))
    return 0


def _attention(attention) -> str:
    if attention is None:
        return "-"
    heads = f"{attention.num_attention_heads}/{attention.num_key_value_heads}x{attention.head_dim}"
    window = "" if attention.sliding_window is None else f" window {attention.sliding_window}"
    return f"{heads}{' rope' if attention.uses_rope else ''}{window}"

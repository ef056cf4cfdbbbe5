"""How many requests fit on a card, by how their caches are kept.

    python -m scripts.serving_memory
    python -m scripts.serving_memory --tokens 32768 --cards 48

The model is a Llama of 8.0 billion parameters (sizes of Llama 3.1 8B) with weights of 16 bits. Of a
card, `--share` is used, as servers do; what the weights leave is the pool. A request has `--tokens`
tokens. Compressed caches hold, beside them, the first and the last tokens at 16 bits, as conversion
decides by default. Prints a Markdown table; cards are in GB of 10^9 bytes. Nothing is loaded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cacheshrink_hybrid.conversion.exact_counts import SINKS, WINDOW
from cacheshrink_hybrid.families import model_spec
from cacheshrink_hybrid.text_tables import format_table

RATIOS = {"16 bits": 1.0, "fp8": 2.0, "4x": 4.0, "8x": 8.0}
"""Kinds of caches: bytes at 16 bits by theirs."""
EXACT_FROM = 4.0
"""Ratios from here on are those of converted models, which keep exact tokens."""


def llama_8b() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
    )


def weight_bytes(config: LlamaConfig) -> int:
    """At 16 bits."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    return 2 * sum(parameter.numel() for parameter in model.parameters())


def request_bytes(config: LlamaConfig, ratio: float, tokens: int) -> float:
    """Of the cache of one request."""
    spec = model_spec(config)
    exact = SINKS + WINDOW if ratio >= EXACT_FROM else 0
    return spec.kv_bytes(tokens) / ratio + exact * spec.bytes_per_token


def table(cards: Sequence[int], tokens: int, share: float) -> str:
    """Requests that fit, one row for each kind of cache."""
    config = llama_8b()
    weights = weight_bytes(config)
    rows = []
    for name, ratio in RATIOS.items():
        need = request_bytes(config, ratio, tokens)
        row: dict[str, object] = {"cache": name, "MB per request": round(need / 1e6)}
        for card in cards:
            row[f"{card} GB"] = max(0, int((share * card * 1e9 - weights) // need))
        rows.append(row)
    return format_table(rows)


def main(argv: Sequence[str] | None = None) -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=8192, help="of a request")
    parser.add_argument("--cards", type=int, nargs="+", default=[24, 80, 141], help="in GB")
    parser.add_argument("--share", type=float, default=0.9, help="of a card that is used")
    given = parser.parse_args(argv)
    print(table(given.cards, given.tokens, given.share))
    return 0


if __name__ == "__main__":
    sys.exit(main())

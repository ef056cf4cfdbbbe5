"""The program `export`: a converted model in DeepSeek's format."""

from __future__ import annotations

import argparse

from ..export.deepseek import export_deepseek
from .arguments import load_given


def run(given: argparse.Namespace) -> int:
    model, tokenizer = load_given(given, given.model, tokenizer=False)
    pad_to = None if given.pad_to is None else tuple(given.pad_to)
    made = export_deepseek(model, given.output, tokenizer=tokenizer, pad_to=pad_to)
    config = made.config
    print(
        f"saved to {given.output}: kv_lora_rank {config.kv_lora_rank}, "
        f"qk_rope_head_dim {config.qk_rope_head_dim}, {config.num_hidden_layers} layers"
    )
    return 0

"""A tiny Llama in a GGUF file, with its tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SIZES = {"vocab": 96, "hidden": 64, "inner": 96, "heads": 2, "kv_heads": 1, "layers": 2}


def write_tiny_gguf(path: Path, quantised: bool = True, architecture: str = "llama") -> None:
    """Random weights in blocks of eight bits (Q8_0), or in float32.

    Args:
        architecture: what the file says it is; its tensors are those of a Llama.
    """
    import gguf

    s = SIZES
    head_dim = s["hidden"] // s["heads"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(s["layers"])
    writer.add_context_length(128)
    writer.add_embedding_length(s["hidden"])
    writer.add_feed_forward_length(s["inner"])
    writer.add_head_count(s["heads"])
    writer.add_head_count_kv(s["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(s["vocab"])
    _add_tokenizer(writer)
    rng = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
            return
        values = rng.normal(0, 2 / shape[-1] ** 0.5, shape).astype(np.float32)
        if quantised:
            q8 = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, q8), raw_dtype=q8)
        else:
            writer.add_tensor(name, values)

    add("token_embd.weight", s["vocab"], s["hidden"])
    add("output.weight", s["vocab"], s["hidden"])
    add("output_norm.weight", s["hidden"])
    for i in range(s["layers"]):
        add(f"blk.{i}.attn_norm.weight", s["hidden"])
        add(f"blk.{i}.ffn_norm.weight", s["hidden"])
        add(f"blk.{i}.attn_q.weight", s["hidden"], s["hidden"])
        add(f"blk.{i}.attn_k.weight", s["kv_heads"] * head_dim, s["hidden"])
        add(f"blk.{i}.attn_v.weight", s["kv_heads"] * head_dim, s["hidden"])
        add(f"blk.{i}.attn_output.weight", s["hidden"], s["hidden"])
        add(f"blk.{i}.ffn_gate.weight", s["inner"], s["hidden"])
        add(f"blk.{i}.ffn_up.weight", s["inner"], s["hidden"])
        add(f"blk.{i}.ffn_down.weight", s["hidden"], s["inner"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer) -> None:
    """Bytes as tokens, in the way of GPT-2."""
    letters = [chr(code) for code in range(33, 33 + SIZES["vocab"] - 5)]
    tokens = ["<unk>", "<s>", "</s>", "Ġ", *letters, "th"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)

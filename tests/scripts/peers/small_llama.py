"""A Llama whose heads are wide enough for every format, with more layers than edges."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from scripts.peers.method import Subject
from tests.texts import TEXTS, word_tokenizer


@cache
def small_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=5,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 300.0},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.inference_mode(False), torch.no_grad():
        model = LlamaForCausalLM(config).eval()
        for layer in model.model.layers:  # attention that looks at few tokens, as trained ones do
            layer.self_attn.q_proj.weight.mul_(20)
            layer.self_attn.k_proj.weight.mul_(20)
            layer.self_attn.o_proj.weight.mul_(5)
    return model


def subject(folder: Path = Path("model")) -> Subject:
    return Subject(
        folder=folder,
        model=small_llama(),
        tokenizer=word_tokenizer(),
        calibration=[" ".join(TEXTS)] * 4,
        calibration_length=64,
        gguf=None,
        window_length=256,
        tuning_steps=4,
        threads=1,
        seed=0,
    )

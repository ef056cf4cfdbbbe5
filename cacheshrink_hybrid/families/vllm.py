"""Families whose models vLLM computes with attention over latents (`cacheshrink_hybrid.vllm`)."""

from __future__ import annotations

VLLM_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "granitemoehybrid": "GraniteMoeHybridForCausalLM",
}
"""By `model_type`, the class that both transformers and vLLM have of it."""

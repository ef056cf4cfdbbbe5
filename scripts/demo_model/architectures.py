"""Small models that remember: a hybrid of Mamba-2 and attention, Mamba-2 alone, DeepSeek's
attention alone, and attention that rotates all channels of its heads or a quarter of them.

transformers' Mamba-2 without its CUDA kernels is slow on a CPU; `fast_mamba` replaces its scan and
its convolution by batched products while a model trains.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GraniteMoeHybridConfig,
    GraniteMoeHybridForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    PreTrainedModel,
    StableLmConfig,
    StableLmForCausalLM,
)
from transformers.models.granitemoehybrid import modeling_granitemoehybrid
from transformers.models.mamba2 import modeling_mamba2

from .characters import BOS, PAD, VOCABULARY


class Architecture(NamedTuple):
    """A kind of model that can be trained.

    Args:
        build: the untrained model in float32, apart from the memory of its heads.
        modeling: transformers' module whose Mamba-2 functions it runs; None for none.
        mixer: its Mamba-2 layers; None for none.
    """

    build: Callable[[], PreTrainedModel]
    modeling: ModuleType | None = None
    mixer: type[nn.Module] | None = None

    def faster(self) -> contextlib.AbstractContextManager[None]:
        """Within it, its Mamba-2 layers, where it has any, run as `fast_mamba` says."""
        return contextlib.nullcontext() if self.modeling is None else fast_mamba(self.modeling)


def _hybrid() -> PreTrainedModel:
    """3.0 M parameters: 4 Mamba-2 and 2 NoPE attention layers."""
    return GraniteMoeHybridForCausalLM(
        GraniteMoeHybridConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=192,
            num_hidden_layers=6,
            layer_types=["linear_attention", "linear_attention", "full_attention"] * 2,
            num_attention_heads=6,
            num_key_value_heads=3,
            attention_multiplier=32**-0.5,
            position_embedding_type=None,
            mamba_n_heads=6,
            mamba_d_head=64,
            mamba_d_state=64,
            mamba_n_groups=1,
            mamba_d_conv=4,
            mamba_expand=2,
            mamba_chunk_size=64,
            num_local_experts=0,
            num_experts_per_tok=0,
            intermediate_size=512,
            shared_intermediate_size=512,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=BOS,
        )
    )


def _mamba2() -> PreTrainedModel:
    """1.5 M parameters: 6 Mamba-2 layers, whose states are all that it remembers."""
    return Mamba2ForCausalLM(
        Mamba2Config(
            vocab_size=len(VOCABULARY),
            hidden_size=192,
            num_hidden_layers=6,
            num_heads=6,
            head_dim=64,
            state_size=64,
            n_groups=1,
            conv_kernel=4,
            expand=2,
            chunk_size=64,
            rms_norm=True,
            residual_in_fp32=False,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=BOS,
        )
    )


def _mla() -> PreTrainedModel:
    """0.7 M parameters: 4 layers of DeepSeek's latent attention, whose latent has twice the width
    of a head, and dense feed-forward layers."""
    return DeepseekV3ForCausalLM(
        DeepseekV3Config(
            vocab_size=len(VOCABULARY),
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            q_lora_rank=None,
            kv_lora_rank=64,
            qk_nope_head_dim=32,
            qk_rope_head_dim=16,
            v_head_dim=32,
            intermediate_size=256,
            first_k_dense_replace=4,
            n_routed_experts=1,
            num_experts_per_tok=1,
            n_group=1,
            topk_group=1,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=BOS,
        )
    )


def _rotary(share: float) -> PreTrainedModel:
    """0.7 M parameters: 4 layers of attention that rotates a share of the channels of a head."""
    return StableLmForCausalLM(
        StableLmConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=256,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": share,
            },
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=BOS,
        )
    )


ARCHITECTURES = {
    "hybrid": Architecture(
        _hybrid, modeling_granitemoehybrid, modeling_granitemoehybrid.GraniteMoeHybridMambaLayer
    ),
    "mamba2": Architecture(_mamba2, modeling_mamba2, modeling_mamba2.Mamba2Mixer),
    "mla": Architecture(_mla),
    "rotary": Architecture(partial(_rotary, 1.0)),
    "partial-rotary": Architecture(partial(_rotary, 0.25)),
}


def build_model(architecture: Architecture, seed: int) -> PreTrainedModel:
    """The untrained model, in float32."""
    torch.manual_seed(seed)
    model = architecture.build()
    for module in model.modules():
        if architecture.mixer is not None and isinstance(module, architecture.mixer):
            # Heads that forget within 4 to 1000 tokens; the default ones do within one or two.
            step = torch.logspace(-3, math.log10(0.25), module.num_heads)
            nn.init.zeros_(module.A_log)
            module.dt_bias.data.copy_(step.expm1().log())
    return model


def batched_chunk_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    *,
    D: Tensor,
    dt_bias: Tensor,
    **_: object,
) -> Tensor:
    """Mamba-2's scan from an empty state, as batched matrix products over chunks.

    Args:
        hidden_states: (B, T, M, P), T a multiple of `chunk_size`.
        dt: (B, T, M), before bias and softplus.
        A, D, dt_bias: (M,).
        B, C: (B, T, 1, N), one group.

    Returns:
        (B, T, M, P).
    """
    b, t, m, p = hidden_states.shape
    n, l, c = B.shape[-1], chunk_size, t // chunk_size
    dtype = hidden_states.dtype
    dt = F.softplus(dt.float() + dt_bias).view(b, c, l, m).transpose(2, 3)  # (b, c, m, l)
    log_decay = (A[:, None] * dt).cumsum(-1)
    x = hidden_states.reshape(b, c, l, m, p).transpose(2, 3)
    x_dt = x * dt[..., None].to(dtype)
    B, C = B.reshape(b, c, l, n), C.reshape(b, c, l, n)

    causal = torch.ones(l, l, dtype=torch.bool).tril()
    decay = (log_decay[..., :, None] - log_decay[..., None, :]).masked_fill(~causal, -torch.inf)
    within = ((C @ B.mT)[:, :, None] * decay.exp().to(dtype)) @ x_dt

    to_end = (log_decay[..., -1:] - log_decay).exp().to(dtype)
    gathered = (x_dt * to_end[..., None]).transpose(2, 3).reshape(b, c, l, m * p)
    states = (B.mT @ gathered).float().view(b, c, n, m, p)
    chunk_decay = log_decay[..., -1].exp()[:, :, None, :, None]
    carried = [torch.zeros_like(states[:, 0])]
    for i in range(c - 1):
        carried.append(carried[-1] * chunk_decay[:, i] + states[:, i])
    before = torch.stack(carried, 1).view(b, c, n, m * p).to(dtype)
    across = (C @ before).view(b, c, l, m, p).transpose(2, 3) * log_decay.exp()[..., None].to(dtype)

    y = within + across + x * D[:, None, None].to(dtype)
    return y.transpose(2, 3).reshape(b, t, m, p)


def shifted_conv(hidden_states: Tensor, weight: Tensor, bias: Tensor, **_: object) -> Tensor:
    """Causal depthwise convolution and SiLU of (B, channels, T), as a sum of shifted products."""
    x, width = hidden_states.transpose(1, 2), weight.shape[-1]
    padded = F.pad(x, (0, 0, width - 1, 0))
    y = bias + sum(padded[:, i : i + x.shape[1]] * weight[:, i] for i in range(width))
    return F.silu(y).to(hidden_states.dtype).transpose(1, 2)


@contextlib.contextmanager
def fast_mamba(modeling: ModuleType) -> Iterator[None]:
    """Within it, the Mamba-2 layers of this module of transformers run the two functions above."""
    stock = modeling.mamba2_chunk_scan, modeling.causal_conv1d_fn
    modeling.mamba2_chunk_scan, modeling.causal_conv1d_fn = batched_chunk_scan, shifted_conv
    try:
        yield
    finally:
        modeling.mamba2_chunk_scan, modeling.causal_conv1d_fn = stock

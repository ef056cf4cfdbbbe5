"""What the plugin was tested with, and what it refuses before any memory is taken."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import NotSupportedError
from ..plan import CompressionPlan
from ..spec import ModelSpec

UNTESTED = "CACHESHRINK_HYBRID_UNTESTED"
"""Environment variable that admits what no row of `TESTED` names, where it is 1."""


@dataclass(frozen=True, slots=True)
class Tested:
    """A release of vLLM, a kind of device, and what was run there.

    Attributes:
        parallel: over how many processes heads were split, and layers.
        recurrent: models with recurrent layers were among those that ran.
    """

    release: str
    device: str
    parallel: tuple[tuple[int, int], ...]
    recurrent: bool = False


TESTED = (Tested("0.32.0", "cpu", ((1, 1), (2, 1), (1, 2)), recurrent=True),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What vLLM was asked for.

    Attributes:
        release: of vLLM.
        device: kind of device.
        tensor_parallel, context_parallel: processes that split heads and tokens.
        stages: layers of each process of a pipeline; empty for one process.
        cache_dtype: `--kv-cache-dtype`.
        quantization: of weights; None for none.
        speculative, adapters: whether drafts are verified, and LoRA adapters are served.
        connector: what moves blocks elsewhere; None for nothing.
        drops_windows: blocks behind a window are given back, and groups of layers have blocks of
            their own (`--disable-hybrid-kv-cache-manager` says no).
    """

    release: str
    device: str
    tensor_parallel: int = 1
    stages: tuple[range, ...] = ()
    context_parallel: int = 1
    cache_dtype: str = "auto"
    quantization: str | None = None
    speculative: bool = False
    adapters: bool = False
    connector: str | None = None
    drops_windows: bool = True

    @property
    def pipeline_parallel(self) -> int:
        """Processes that layers are split over."""
        return max(1, len(self.stages))


def refuse_unsupported(deployment: Deployment, plan: CompressionPlan, spec: ModelSpec) -> None:
    """Raise `NotSupportedError` with all that keeps a checkpoint from being served so."""
    faults = [
        *_other_contexts(spec),
        *_untested(deployment, spec),
        *_refused_options(deployment),
        *_refused_layers(plan, spec),
        *_refused_block_tables(plan, spec, deployment),
        *_unsplit_heads(plan, spec, deployment.tensor_parallel),
        *_refused_stages(plan, spec, deployment),
    ]
    if faults:
        raise NotSupportedError(f"vLLM does not serve this converted model: {'; '.join(faults)}")


def _other_contexts(spec: ModelSpec) -> Iterator[str]:
    if any(x.attention is not None and x.attention.in_chunks for x in spec.layers):
        yield f"layers of a {spec.model_type} model see chunks of a text"
    if spec.cross is not None:
        yield f"a {spec.model_type} decoder reads an encoder's output; let generate() serve it"


def told_bytes(deployment: Deployment, plan: CompressionPlan, spec: ModelSpec) -> tuple[str, bool]:
    """What a token takes on one device of those that heads and layers are split over, in words,
    and whether that is less than the device would hold of keys and values at 16 bits."""
    ranks, stages = deployment.tensor_parallel, deployment.stages or (range(len(spec.layers)),)
    stored = [sum(x.part(ranks).bytes_per_token for x in plan.latents_of(of)) for of in stages]
    ours = max(stored)
    source = max(sum(spec.layers[i].bytes_per_token for i in of) // ranks for of in stages)
    words = (
        f"a token takes {ours:,} bytes on each device, where keys and values of 16 bits take "
        f"{source:,}"
    )
    if len(stages) > 1:
        taken = ", ".join(f"{count:,}" for count in stored)
        words += f", in blocks of one size for pipeline stages whose rows take {taken}"
        if min(stored) < ours:
            words += "; VLLM_PP_LAYER_PARTITION deals layers out in other ways"
    if ranks > 1 and not all(entry.splits_rows(ranks) for entry in plan.latents):
        words += (
            f"; tensor_parallel_size={ranks} splits these, and rows are whole on every device: "
            f"convert with head_groups={ranks} to split both"
        )
    return words, ours < source


def _untested(deployment: Deployment, spec: ModelSpec) -> Iterator[str]:
    rows = [
        row
        for row in TESTED
        if row.release == deployment.release.partition("+")[0] and row.device == deployment.device
    ]
    known = ", ".join(
        f"vLLM {row.release} on {row.device} with "
        + " or ".join(_processes(*counts) for counts in row.parallel)
        + (", recurrent layers too" if row.recurrent else ", without recurrent layers")
        for row in TESTED
    )
    recurrent = bool(spec.state_layers)
    tested = any(
        (deployment.tensor_parallel, deployment.pipeline_parallel) in row.parallel
        and row.recurrent >= recurrent
        for row in rows
    )
    if not tested and os.environ.get(UNTESTED) != "1":
        yield (
            f"vLLM {deployment.release} on {deployment.device} with "
            f"{_processes(deployment.tensor_parallel, deployment.pipeline_parallel)}"
            f"{' and recurrent layers' if recurrent else ''} was not tested; tested is {known}; "
            f"use that, or set {UNTESTED}=1 to try"
        )


def _processes(heads: int, layers: int) -> str:
    """Processes that heads and layers are split over, as vLLM is told of them."""
    words = f"tensor_parallel_size={heads}"
    return words if layers == 1 else f"{words} and pipeline_parallel_size={layers}"


def _refused_options(deployment: Deployment) -> Iterator[str]:
    if deployment.cache_dtype != "auto":
        yield (
            f"kv_cache_dtype={deployment.cache_dtype!r} would code rows a second time; leave it at "
            "'auto', and convert with a higher compression_ratio for fewer bytes"
        )
    if deployment.quantization is not None:
        yield (
            f"quantization={deployment.quantization!r} is of weights that latents are not read "
            "with; leave it out"
        )
    if deployment.context_parallel > 1:
        yield (
            "decode_context_parallel_size and prefill_context_parallel_size="
            f"{deployment.context_parallel} was not built for latents; leave it at 1"
        )
    if deployment.speculative:
        yield "speculative_config asks for drafts, whose rows are not taken back; leave it out"
    if deployment.adapters:
        yield "enable_lora adapts projections that a converted model does not have; leave it out"
    if deployment.connector is not None:
        yield (
            f"kv_connector={deployment.connector!r} was not tried with rows of latents; leave "
            "kv_transfer_config out"
        )


def _refused_layers(plan: CompressionPlan, spec: ModelSpec) -> Iterator[str]:
    """What vLLM's pages do not hold of a model."""
    if plan.states:
        yield (
            f"states of {len(plan.states)} recurrent layers (layer {plan.states[0].layer_idx} "
            f"first) are cut or coded to {plan.state_ratio:.3g} times fewer bytes, which vLLM's "
            "own layers do not read; convert without state_ratio and state_dtype, or use "
            "cacheshrink-hybrid serve"
        )
    if spec.caches_latents:
        yield (
            f"model_type={spec.model_type!r} caches latents of its own, whose rows vLLM's kernels "
            "do not read; use cacheshrink-hybrid serve"
        )
    latent = {idx for entry in plan.latents for idx in entry.layer_ids}
    kept = [layer.layer_idx for layer in spec.attention_layers if layer.layer_idx not in latent]
    if kept:
        yield (
            f"layers {kept[:5]} keep keys and values beside layers with latents; convert without "
            "keep_early_layers_original"
        )
    if any(entry.basis_group is not None for entry in plan.latents):
        yield "its layers share bases, which is not served; convert with another method than 'xkv'"


def _refused_block_tables(
    plan: CompressionPlan, spec: ModelSpec, deployment: Deployment
) -> Iterator[str]:
    """What keeps exact rows and recurrent states from having blocks of their own."""
    if deployment.drops_windows:
        return
    if spec.state_layers:
        yield (
            "its recurrent states are in blocks of their own, which "
            "disable_hybrid_kv_cache_manager turns off; leave that out"
        )
    elif any(entry.keeps_exact for entry in plan.latents):
        yield (
            "its first and last tokens stay exact, in blocks that are given back behind a window, "
            "which disable_hybrid_kv_cache_manager turns off; leave that out, or convert with "
            "exact_sinks=0 and exact_window=0"
        )


def _unsplit_heads(plan: CompressionPlan, spec: ModelSpec, ranks: int) -> Iterator[str]:
    """What keeps heads from being split over so many processes."""
    if ranks == 1:
        return
    for layer in spec.state_layers:
        state = layer.state
        assert state is not None
        # vLLM gives each process a copy of a group of Mamba-2 that all heads share.
        shared = state.kind == "mamba2" and state.num_groups == 1
        if state.num_heads % ranks or (state.num_groups % ranks and not shared):
            yield (
                f"tensor_parallel_size={ranks} does not divide {state.num_heads} heads in "
                f"{state.num_groups} groups of recurrent layer {layer.layer_idx}; give one that "
                "divides both"
            )
            break
    for layer in spec.attention_layers:
        attention = layer.attention
        assert attention is not None
        heads = attention.num_attention_heads, attention.num_key_value_heads
        if any(count % ranks for count in heads):
            yield (
                f"tensor_parallel_size={ranks} does not divide {heads[0]} query and {heads[1]} key "
                f"heads of layer {layer.layer_idx}; give one that divides both"
            )
            return
    own = [entry for entry in plan.latents if entry.kind.per_head and not entry.splits_rows(ranks)]
    if own:
        yield (
            f"tensor_parallel_size={ranks} splits key heads, and rows of method={own[0].method!r} "
            f"(layer {own[0].layer_ids[0]}) hold channels of each head's own beside values of all "
            f"heads; convert with head_groups={ranks}, or leave tensor_parallel_size at 1"
        )


def _refused_stages(
    plan: CompressionPlan, spec: ModelSpec, deployment: Deployment
) -> Iterator[str]:
    """What keeps layers from being split over so many processes."""
    count = deployment.pipeline_parallel
    if count == 1:
        return
    if spec.state_layers:
        yield (
            f"pipeline_parallel_size={count} splits recurrent layers and attention, which "
            f"vLLM's own class of a {spec.model_type} model does not run: it calls the layers of "
            "other processes too; leave it at 1"
        )
    elif not all(plan.latents_of(layers) for layers in deployment.stages):
        yield (
            f"pipeline_parallel_size={count} leaves a process without layers; give at most "
            f"{len(spec.layers)}, or deal layers out in another way (VLLM_PP_LAYER_PARTITION)"
        )

"""vLLM's settings beside a converted model, looked at before anything is loaded."""

from __future__ import annotations

from typing import Any

import vllm
from vllm.distributed.utils import get_pp_indices
from vllm.logger import init_logger
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform

from ..checkpoint.description import Saved, read_checkpoint
from ..checkpoint.pretrained_arguments import local_directory
from ..families import model_spec
from .support import Deployment, refuse_unsupported, told_bytes

PIPELINE_WORKER = f"{__package__}.cpu_worker.PipelineWorker"

# Of loggers vLLM shows those below its own.
logger = init_logger("vllm.cacheshrink_hybrid")


class LatentModelConfig(VerifyAndUpdateConfig):
    """What vLLM asks of an architecture when all settings are known."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Refuse what cannot be served, tell what a token takes, and have the rest run as it is:
        rows are read outside of compiled graphs, which would keep what they read when they were
        traced.

        Raises:
            CheckpointError: no checkpoint of ours, or one of another format version.
            NotSupportedError: settings, or a plan, that are not served.
        """
        saved = saved_model(vllm_config)
        deployment = _deployment(vllm_config)
        spec = model_spec(saved.config)
        refuse_unsupported(deployment, saved.plan, spec)
        words, gains = told_bytes(deployment, saved.plan, spec)
        tell = logger.info_once if gains else logger.warning_once
        tell("Converted by cacheshrink_hybrid: %s", words)
        vllm_config.model_config.enforce_eager = True
        parallel = vllm_config.parallel_config
        is_cpu_pipeline = deployment.device == "cpu" and deployment.pipeline_parallel > 1
        if is_cpu_pipeline and parallel.worker_cls == "auto":
            parallel.worker_cls = PIPELINE_WORKER


def saved_model(vllm_config: Any) -> Saved:
    """The checkpoint that vLLM is to serve, without its weights."""
    model = vllm_config.model_config
    return read_checkpoint(local_directory(model.model, {"revision": model.revision}))


def pipeline_stages(vllm_config: Any) -> tuple[range, ...]:
    """Layers of each process of the pipeline, as vLLM gives them out."""
    count = vllm_config.parallel_config.pipeline_parallel_size
    num_layers = vllm_config.model_config.get_total_num_hidden_layers()
    return tuple(range(*get_pp_indices(num_layers, rank, count)) for rank in range(count))


def _deployment(vllm_config: Any) -> Deployment:
    parallel, transfer = vllm_config.parallel_config, vllm_config.kv_transfer_config
    return Deployment(
        release=vllm.__version__,
        device=current_platform.device_type,
        tensor_parallel=parallel.tensor_parallel_size,
        stages=pipeline_stages(vllm_config),
        context_parallel=max(
            parallel.decode_context_parallel_size, parallel.prefill_context_parallel_size
        ),
        cache_dtype=vllm_config.cache_config.cache_dtype,
        quantization=vllm_config.model_config.quantization,
        speculative=vllm_config.speculative_config is not None,
        adapters=vllm_config.lora_config is not None,
        connector=None if transfer is None else transfer.kv_connector,
        drops_windows=not vllm_config.scheduler_config.disable_hybrid_kv_cache_manager,
    )

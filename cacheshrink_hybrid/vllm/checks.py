"""vLLM's settings beside a converted model, looked at before anything is loaded."""

from __future__ import annotations

from typing import Any

import vllm
from vllm.logger import init_logger
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform

from ..checkpoint.description import Saved, read_checkpoint
from ..checkpoint.pretrained_arguments import local_directory
from ..families import model_spec
from .support import Deployment, refuse_unsupported, told_bytes

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
        refuse_unsupported(deployment, saved.plan, model_spec(saved.config))
        words, gains = told_bytes(saved.plan, deployment.tensor_parallel)
        tell = logger.info_once if gains else logger.warning_once
        tell("Converted by cacheshrink_hybrid: %s", words)
        vllm_config.model_config.enforce_eager = True


def saved_model(vllm_config: Any) -> Saved:
    """The checkpoint that vLLM is to serve, without its weights."""
    model = vllm_config.model_config
    return read_checkpoint(local_directory(model.model, {"revision": model.revision}))


def _deployment(vllm_config: Any) -> Deployment:
    parallel, transfer = vllm_config.parallel_config, vllm_config.kv_transfer_config
    return Deployment(
        release=vllm.__version__,
        device=current_platform.device_type,
        tensor_parallel=parallel.tensor_parallel_size,
        pipeline_parallel=parallel.pipeline_parallel_size,
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

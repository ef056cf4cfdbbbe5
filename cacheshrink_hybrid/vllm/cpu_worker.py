"""vLLM's process on a CPU, made ready to take part in a pipeline."""

from __future__ import annotations

from vllm.distributed import get_pp_group
from vllm.v1.worker.cpu_worker import CPUWorker


class PipelineWorker(CPUWorker):
    """A process that others may hand hidden states to.

    vLLM makes room for them in a warm-up, which its CPU worker leaves out where models run eagerly.
    """

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        super().load_model(load_dummy_weights=load_dummy_weights)
        if get_pp_group().is_first_rank:
            return
        runner = self.model_runner
        runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
            batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
        )

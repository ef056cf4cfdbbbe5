"""One call of a model on a cache."""

from __future__ import annotations

import inspect

from torch import Tensor
from transformers import Cache, PreTrainedModel

from ..cache_argument import cache_argument
from ..errors import NotSupportedError, UnsupportedModelError
from ..families import model_spec, refuse_encoder
from ..placement import input_device


class ModelCall:
    """A model, called with a cache for the logits of its last token.

    Args:
        model: converted or not, of a supported family.

    Attributes:
        device: of what it is given.

    Raises:
        UnsupportedModelError: transformers itself runs the model without a cache only.
        NotSupportedError: the model has an encoder, or layers that see chunks.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        refuse_encoder(model.config, "the engine", "let model.generate() serve it")
        self.model, self.device = model, input_device(model)
        self.spec = model_spec(model.config.get_text_config(decoder=True))
        if any(x.attention is not None and x.attention.in_chunks for x in self.spec.layers):
            raise NotSupportedError(
                f"the engine reads all tokens or a sliding window, and layers of this "
                f"{self.spec.model_type} model see chunks of a text; let model.generate() serve it"
            )
        self._attends = bool(self.spec.attention_layers)
        self._cache_name = cache_argument(model)
        self._dtype = model.dtype
        if not self._attends and "position_ids" in inspect.signature(model.forward).parameters:
            # Models with positions make masks, and ask for their sizes layers that have keys.
            raise UnsupportedModelError(
                f"this {type(model).__name__} has recurrent layers alone, and transformers runs "
                "such hybrids without a cache only; use a model type without attention, such as "
                "mamba2"
            )

    def __call__(
        self,
        ids: Tensor,
        cache: Cache,
        positions: Tensor,
        mask: Tensor | None,
        *,
        every_token: bool = False,
    ) -> Tensor:
        """Logits (B, V) after the last of the tokens `ids` (B, T), or (B, T, V) after each.

        Raises:
            NotSupportedError: the model's type is not what it was.
        """
        if self.model.dtype != self._dtype:
            raise NotSupportedError(
                f"the model was {self._dtype} when this engine was made and is {self.model.dtype} "
                "now, and the pool's rows or states are of the former; make a new LLM"
            )
        # Without attention nobody sees other slots, and nothing depends on positions.
        seen = {"attention_mask": mask, "position_ids": positions} if self._attends else {}
        output = self.model(
            input_ids=ids,
            use_cache=True,
            logits_to_keep=0 if every_token else 1,
            **seen,
            **{self._cache_name: cache},
        )
        return output.logits if every_token else output.logits[:, -1]

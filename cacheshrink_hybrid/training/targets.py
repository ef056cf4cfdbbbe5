"""What the original model does on a batch: its logits, keys and values, and attention outputs.

The original is a teacher model, or the converted model itself with compression switched off: its
latent attention then calls the source attention that `store_original_weights=True` kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..codecs.straight_through import straight_through
from ..errors import ConfigError
from ..families import attention_at, model_spec, read_attention, read_source_attention
from ..latents.attention.kept_source import KeepsSource
from ..latents.attention.module import LatentAttention
from ..latents.attention.parts import AttentionParts
from ..latents.attention.reading import ReadingAttention
from ..model.attached_plan import is_converted
from ..model.original_model import compression_disabled


def check_teacher(model: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Raise `ConfigError` unless `teacher` can teach `model`."""
    if teacher is model:
        raise ConfigError(
            "teacher_model is the model itself; leave it out to be taught by its own source weights"
        )
    given, due = teacher.config.vocab_size, model.config.vocab_size
    if given != due:
        raise ConfigError(
            f"the teacher has a vocabulary of {given} tokens, the model one of {due}; "
            "distillation compares them token by token, so give a teacher with the same tokenizer"
        )
    if is_converted(teacher):
        raise ConfigError("teacher_model is a converted model; give an original one")


@dataclass
class Original:
    """The original model.

    Attributes:
        model: the converted model.
        teacher: a source model, or None to use `model` with compression switched off.
    """

    model: PreTrainedModel
    teacher: PreTrainedModel | None

    def __post_init__(self) -> None:
        if self.teacher is None:
            with compression_disabled(self.model):
                pass  # raises here, before training, if the source weights are not there
        self.parts: list[AttentionParts] = (
            read_source_attention(self.model, model_spec(self.model.config))
            if self.teacher is None
            else read_attention(self.teacher, model_spec(self.teacher.config))
        )

    @property
    def module(self) -> PreTrainedModel:
        return self.model if self.teacher is None else self.teacher

    @contextmanager
    def _switched(self) -> Iterator[PreTrainedModel]:
        """The original in evaluation mode."""
        if self.teacher is not None:
            yield self.teacher.eval()
            return
        training = [module for module in self.model.modules() if module.training]
        for module in training:
            module.training = False
        try:
            with compression_disabled(self.model):
                yield self.model
        finally:
            for module in training:
                module.training = True

    @torch.no_grad()
    def logits(self, input_ids: Tensor) -> Tensor:
        """(B, T, V)."""
        with self._switched() as original:
            return original(input_ids=input_ids, use_cache=False).logits

    @torch.no_grad()
    def key_values(self, input_ids: Tensor) -> dict[int, Tensor]:
        """y = [k; v] (B, T, 2*J*D) by cache layer, keys before norm and rotation, multiplied."""
        found: dict[int, Tensor] = {}
        parts_of = {idx: parts for parts in self.parts for idx in parts.layer_ids}

        def see(x: Tensor, layer_idx: int) -> None:
            parts = parts_of[layer_idx]
            y = parts.key_value(x, layer_idx)
            y[..., : parts.key_width] *= parts.key_multiplier
            found[layer_idx] = y

        with ExitStack() as stack:
            original = stack.enter_context(self._switched())
            for layer_idx in latent_layers(self.model):
                stack.enter_context(observed_input(original, layer_idx, see))
            original(input_ids=input_ids, use_cache=False)
        return found


def latent_layers(model: PreTrainedModel) -> dict[int, LatentAttention]:
    """Cache layers with latent attention, and the module at each place."""
    places = {
        layer.layer_idx: attention_at(model, layer.layer_idx)
        for layer in model_spec(model.config).attention_layers
    }
    return {i: place for i, place in places.items() if isinstance(place, LatentAttention)}


@contextmanager
def observed_input(
    model: PreTrainedModel, layer_idx: int, see: Callable[[Tensor, int], None]
) -> Iterator[None]:
    """Call `see(x, layer_idx)` with the input x (B, T, E) of one layer's attention."""

    def hook(_module, args: tuple, kwargs: dict) -> None:
        see(args[0] if args else kwargs["hidden_states"], layer_idx)

    handle = attention_at(model, layer_idx).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def rebuilt_key_value(module: LatentAttention, x: Tensor, layer_idx: int) -> Tensor:
    """y^ = [k^; v^] (B, T, 2*J*D) that a module's latents of inputs x (B, T, E) stand for, keys
    before norm and rotation."""
    head = module.head
    if head.stores_rotated:
        latent = head.latent_in_block(module.key_value(x, layer_idx), 0)
    else:
        latent = module.latent(x, layer_idx)
    if head.codec is not None:
        coded = head.decoded(head.encoded(latent), latent.dtype)
        latent = straight_through(latent, coded)
    return torch.cat([head.raw_keys(latent, 0), head.value_up(head.value_channels(latent))], dim=-1)


class RebuiltObserver:
    """Rebuilt keys and values of a model's training passes, by cache layer.

    Its hooks stay until `close`: layers whose activations are not kept run again on the way back,
    and must then do the same once more.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._found: dict[int, Tensor] | None = None
        self._hooks = ExitStack()
        for layer_idx, module in latent_layers(model).items():
            see = partial(self._see, module=module)
            self._hooks.enter_context(observed_input(model, layer_idx, see))

    def _see(self, x: Tensor, layer_idx: int, *, module: LatentAttention) -> None:
        if not (module.training and torch.is_grad_enabled()):
            return
        y = rebuilt_key_value(module, x, layer_idx)
        if self._found is not None:
            self._found[layer_idx] = y

    @contextmanager
    def collecting(self) -> Iterator[dict[int, Tensor]]:
        """y^ (B, T, 2*J*D) by cache layer of the pass inside."""
        self._found = {}
        try:
            yield self._found
        finally:
            self._found = None

    def close(self) -> None:
        self._hooks.close()


@contextmanager
def matched_outputs(
    original: Original, loss: Callable[[Tensor, Tensor], Tensor]
) -> Iterator[list[Tensor]]:
    """Within this context the model computes what its source does, and each attention over latents
    is run beside it on the same input: collects `loss(latent output, source output)` by layer."""
    model = original.model
    losses: list[Tensor] = []

    def hook(module: KeepsSource, args: tuple, kwargs: dict, output: tuple) -> None:
        module.compression_disabled = False
        training, module.training = module.training, True
        try:
            with torch.enable_grad():
                # The class's forward, so that the hooks of this place do not run again.
                latent_output = type(module).forward(module, *args, **kwargs)[0]
                losses.append(loss(latent_output, output[0].detach()))
        finally:
            module.compression_disabled = True
            module.training = training

    with ExitStack() as stack:
        stack.enter_context(original._switched())
        reading: list[KeepsSource] = [
            module for module in model.modules() if isinstance(module, ReadingAttention)
        ]
        for module in (*latent_layers(model).values(), *reading):
            handle = module.register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield losses

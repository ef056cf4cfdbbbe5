"""The weights of a converted model as they are saved, and by what they are known again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange

from ..errors import CheckpointError
from ..latents.attention.kept_source import KeepsSource
from ..precision import as_integers
from ..states.mixers.mixer import RecurrentMixer
from .files import shown


def saved_weights(
    model: PreTrainedModel, given: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor] | None:
    """Every weight under one name, without the source's that `store_original_weights` keeps
    beside those that replaced them; None for adapters, which transformers picks out itself.

    Raises:
        CheckpointError: if `given` lacks weights of the model or has others.
    """
    if getattr(model, "_hf_peft_config_loaded", False):
        return None if given is None else dict(given)
    places: tuple[tuple[type, str], ...] = (
        (KeepsSource, "source_attention"),
        (RecurrentMixer, "source_weights"),
    )
    kept = tuple(
        f"{name}.{place}."
        for name, module in model.named_modules(remove_duplicate=False)
        for kind, place in places
        if isinstance(module, kind)
    )
    tied = model.all_tied_weights_keys
    state: dict[str, torch.Tensor] = {}
    stored: set[int] = set()
    own = model.state_dict()
    # Names that the loader knows to be copies come last, so that their originals are stored.
    names = [name for name in sorted(own, key=tied.__contains__) if not name.startswith(kept)]
    values = own if given is None else given
    unlike = {n for n in given or () if not n.startswith(kept)} ^ set(names if given else ())
    lacking = {name for name in unlike if name in tied and tied[name] in values}
    if unlike - lacking:
        raise CheckpointError(
            f"state_dict lacks weights of the model or has others ({shown(unlike - lacking)}); "
            "give that of the whole model, unwrapped"
        )
    for name in names:
        tensor = values.get(name)
        same = own[name]
        on_device = same.numel() and same.device.type != "meta"
        copies = tied.get(name) in state or (on_device and same.data_ptr() in stored)
        if tensor is None or copies:
            continue
        state[name] = tensor
        if on_device:
            stored.add(same.data_ptr())
    return state


def weights_fingerprint(weights: Mapping[str, torch.Tensor]) -> str | None:
    """Digest of names, types, shapes and contents; None if some weights are not at hand.

    Of each tensor the sum of its bits is taken, as whole numbers: it takes one pass over the memory
    wherever that lies, and any training changes it.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        if tensor.device.type == "meta":
            return None
        total = int(as_integers(tensor.detach()).sum(dtype=torch.int64))
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {total}\n".encode())
    return digest.hexdigest()


@contextmanager
def without_broken_conversions(
    model: PreTrainedModel, weights: Mapping[str, torch.Tensor] | None
) -> Iterator[None]:
    """Within this context transformers saves a model without those of its conversions to published
    names that join several matrices of which `weights` has not all any more."""
    given = vars(model).get("_weight_conversions")
    conversions = given
    if conversions is None:  # the prefixes of names are known of models that were loaded
        found = get_model_conversion_mapping(model, add_legacy=False)
        conversions = [x for x in found if not isinstance(x, PrefixChange)]
    names = list(model.state_dict() if weights is None else weights)
    whole = [
        conversion
        for conversion in conversions
        if len(conversion.target_patterns) == 1
        or all(any(re.search(p, name) for name in names) for p in conversion.target_patterns)
    ]
    vars(model)["_weight_conversions"] = whole
    try:
        yield
    finally:
        if given is None:
            del vars(model)["_weight_conversions"]
        else:
            vars(model)["_weight_conversions"] = given

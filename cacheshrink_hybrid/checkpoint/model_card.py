"""The README.md that a save writes beside a model, unless somebody else wrote one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import metadata_load, try_to_load_from_cache

from ..families import model_spec
from ..plan import TOTAL_LENGTHS, CompressionPlan, key_value_prediction, state_prediction
from ..version import __version__
from .files import CARD_NAME
from .model_names import is_repo_id, public_name

if TYPE_CHECKING:
    from ..model.latent_model import LatentModel


OWN_CARD = (
    "<!-- Written by cacheshrink_hybrid, anew with every save; delete this line to keep it. -->"
)
"""By what a card of ours is known."""
CARD = """\
---
{metadata}---

# {title}

{source}, rewritten by cacheshrink_hybrid {version} so that what it remembers takes fewer bytes.

| | before | after |
|---|---:|---:|
{rows}

{loss}

It needs the package `cacheshrink_hybrid` (`pip install cacheshrink_hybrid`, or from its sources):

```python
from cacheshrink_hybrid import load_mla_model

model, tokenizer = load_mla_model("path/or/name/of/this/model")
```

Once the package is imported, `AutoModelForCausalLM.from_pretrained` loads it too.

{mark}
"""


def is_own_card(path: Path) -> bool:
    """Whether a save may write a card there: there is none, or one that a save wrote."""
    if not path.exists():
        return True
    try:
        return OWN_CARD in path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # a directory, or nothing that may be read
        return False


def model_card(model: LatentModel, plan: CompressionPlan) -> str:
    """A card with the source, its license where its own card is at hand, sizes and the loss."""
    name = model.source_name
    metadata: dict[str, Any] = {"library_name": "transformers", "tags": ["cacheshrink_hybrid"]}
    shown = public_name(name)
    if "/" in shown and is_repo_id(shown):
        metadata["base_model"] = shown
    license_name = _license_of(name)
    if license_name is not None:
        metadata["license"] = license_name
    source = f"`{shown}`" if shown else f"A {plan.model_type} model"
    return CARD.format(
        metadata=yaml.safe_dump(metadata, sort_keys=True),
        title=f"{shown or plan.model_type}, compressed",
        source=source,
        version=__version__,
        rows="\n".join(_rows(model, plan)),
        loss=_loss(plan),
        mark=OWN_CARD,
    )


def _rows(model: LatentModel, plan: CompressionPlan) -> list[str]:
    spec = model_spec(model.config)
    rows = []
    if spec.attention_layers:
        rows.append(
            "| bytes per token of keys and values, the source at 16 bits | "
            f"{plan.source_bytes_per_token:,} | {plan.bytes_per_token:,} "
            f"({plan.compression_ratio:.2f}x) |"
        )
    if spec.cross is not None and plan.cross is not None:
        rows.append(
            "| bytes per vector of the encoder's output, the source at 16 bits | "
            f"{plan.cross.source_bytes_per_token:,} | {plan.cross.bytes_per_token:,} "
            f"({plan.cross.compression_ratio:.2f}x) |"
        )
    included = "exact ones and states" if spec.state_layers else "exact ones"
    for length in TOTAL_LENGTHS:
        before = spec.kv_bytes(length) + spec.bytes_per_sequence
        after = plan.bytes_at(spec, length)
        rows.append(
            f"| bytes of {length // 1024}k tokens, {included} included | "
            f"{before:,} | {after:,} ({before / after:.2f}x) |"
        )
    if plan.states:
        rows.append(
            "| bytes per sequence of recurrent states, the source at 32 bits | "
            f"{plan.source_state_bytes:,} | {plan.state_bytes:,} ({plan.state_ratio:.2f}x) |"
        )
    return rows


def _loss(plan: CompressionPlan) -> str:
    if plan.metric == "none":
        return "It was converted without calibration text, so no loss is predicted."
    losses = []
    if plan.source_bytes_per_token:
        losses.append(f"Keys and values: {key_value_prediction(plan)}, all read coded.")
    if plan.states:
        losses.append(f"Recurrent states: {state_prediction(plan)}.")
    if plan.calibrated_on:
        losses.append(f"Calibrated on {plan.calibrated_on}.")
    if plan.certificate is not None:
        told = str(plan.certificate)
        losses.append(f"{told[0].upper()}{told[1:]}; {plan.certificate.circumstances}.")
    return "\n".join(
        [
            *losses,
            "This says nothing about other text; measure with `cacheshrink-hybrid perplexity`.",
        ]
    )


def _license_of(name: str) -> str | None:
    """The license that the source's own card names, if that is in its directory or in the cache."""
    if is_repo_id(name):
        found = try_to_load_from_cache(name, CARD_NAME)
        card = Path(found) if isinstance(found, str) else None
    else:
        card = Path(name) / CARD_NAME if os.path.isabs(name) else None
    if card is None or not card.is_file():
        return None
    try:
        values = metadata_load(card)
    except (OSError, ValueError, yaml.YAMLError):  # a card that others wrote, with a broken head
        return None
    found = (values or {}).get("license")
    return found if isinstance(found, str) else None

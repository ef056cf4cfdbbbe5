"""The model that ships with the package, as tests of serving want it."""

from __future__ import annotations

import copy
from functools import cache

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cacheshrink_hybrid.demo import model_path
from cacheshrink_hybrid.engine.named_model import load_named

CHAT_TEMPLATE = (
    "{% for t in tools or [] %}{{ t['function']['name'] }}\n{% endfor %}"
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}{{ c['function']['arguments'] | tojson }}{% endfor %}"
    "{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@cache
def shipped_model() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """In float32, with a tokenizer that knows a chat template."""
    model, tokenizer = load_named(model_path())
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CHAT_TEMPLATE
    return model.to(torch.float32), tokenizer

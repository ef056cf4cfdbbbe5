"""Tasks of lm-eval, defined by files of one's own, asked through the live cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ConfigError
from .defaults import DEFAULT_CHUNK
from .live_model import check_lm_eval, lm_eval_model


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """One figure of one task.

    Attributes:
        filter: how answers were read; "none" where they are taken as they are.
        value: of the whole task.
        by_document: its values by document, of which `value` is the mean; None of a figure that is
            no mean of numbers, such as a perplexity.
    """

    task: str
    metric: str
    filter: str
    value: float
    by_document: tuple[float, ...] | None


def checked_tasks(folder: str | Path, tasks: Sequence[str] | None = None) -> list[str]:
    """These tasks and groups, or all tasks that the YAML files of a folder define.

    Raises:
        ConfigError: lm-eval is not installed, or the folder defines no such task.
    """
    manager = _manager(folder)
    known = sorted(manager.all_tasks)
    unknown = sorted(set(tasks or ()) - set(known))
    if unknown or not known:
        raise ConfigError(
            f"{folder} defines no task {', '.join(unknown) or 'at all'}; it defines "
            f"{', '.join(known) or 'none'}, and tasks are YAML files of lm-eval with a line `task:`"
        )
    return list(tasks or sorted(manager.all_subtasks))


def measure_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    tasks: Sequence[str] | None = None,
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
    chunk_length: int = DEFAULT_CHUNK,
) -> list[TaskResult]:
    """Every figure of tasks, with everything read from the cache of generation.

    Args:
        model: converted or not.
        folder: of YAML files of tasks; no other tasks are known.
        tasks: names, also of groups; None for all of them.
        limit: documents of each task, from the first on; None for all.
        num_fewshot: examples before each question; None for what tasks say, or none.
        chat: ask in the tokenizer's chat template.
        chunk_length: tokens per forward pass.

    Raises:
        ConfigError: lm-eval is not installed, a task that the folder does not define, a tokenizer
            without a chat template, or a task that is not greedy.
    """
    asked = lm_eval_model(model, tokenizer, chunk_length)
    if chat:
        asked.chat_template(True)
    names = checked_tasks(folder, tasks)
    from lm_eval import evaluate

    loaded = _manager(folder).load(names)
    for task in loaded["tasks"].values():
        if num_fewshot is not None or task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=0)
    found: Any = evaluate(asked, loaded, limit=limit, bootstrap_iters=0, apply_chat_template=chat)
    return [
        result
        for task, samples in found["samples"].items()
        for result in _results(task, found["results"][task], samples)
    ]


def _manager(folder: str | Path) -> Any:
    check_lm_eval()
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=False)


def _results(
    task: str, figures: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> list[TaskResult]:
    """The figures of one task, which lm-eval names `metric,filter`."""
    results = []
    for name, value in figures.items():
        metric, comma, kind = name.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        values = [sample.get(metric) for sample in samples if sample["filter"] == kind]
        numbers = [float(one) for one in values if isinstance(one, (bool, int, float))]
        is_mean = len(numbers) == len(values) > 0
        is_mean = is_mean and abs(sum(numbers) / len(numbers) - value) < 1e-9
        results.append(
            TaskResult(
                task=task,
                metric=metric,
                filter=kind,
                value=float(value),
                by_document=tuple(numbers) if is_mean else None,
            )
        )
    return results

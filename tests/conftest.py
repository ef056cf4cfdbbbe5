"""Settings of every test: offline, one thread, and torch's deterministic mode, which fills
uninitialised memory with NaN, so that a row that nobody wrote fails loudly. Which tests `--quick`
runs, and which ones share a process.
"""

from __future__ import annotations

import gc
import json
import os
import zlib

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

# Triton chooses its interpreter when it is first imported, which other tests may do before those
# of the kernels.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import transformers

from cacheshrink_hybrid import precision
from tests.families.tiny_configs import AXES

QUICK_PARAMETERS = 1
"""Of the sets of parameters of a test, how many `--quick` runs; one family per axis in tests of
identity."""
QUICK_SECONDS = 0.25
"""Of a core: tests that take longer, by SECONDS, are left out of `--quick`."""
SECONDS = Path(__file__).parent / "seconds.json"
"""What the tests took, each the mean over its sets of parameters, where that is more than half of
QUICK_SECONDS; `scripts/test.sh --write-seconds` writes it."""
_taken: dict[str, float] = defaultdict(float)
"""Seconds of this run, of every test with its parameters."""


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "one family per axis, few sets of parameters per test, and nothing that takes long"
    parser.addoption("--quick", action="store_true", help=text)
    text = f"write what the tests of this run took into {SECONDS.name}"
    parser.addoption("--write-seconds", action="store_true", help=text)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _taken[report.nodeid] += report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--write-seconds") and "PYTEST_XDIST_WORKER" not in os.environ:
        cases: dict[str, list[float]] = defaultdict(list)
        for test, seconds in _taken.items():
            cases[_without_parameters(test)].append(seconds)
        means = {test: sum(cases[test]) / len(cases[test]) for test in sorted(cases)}
        kept = {test: round(mean, 1) for test, mean in means.items() if mean > QUICK_SECONDS / 2}
        SECONDS.write_text(json.dumps(kept, indent=0) + "\n", encoding="utf-8")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.getoption("--quick"):
        terminalreporter.write_line(
            f"--quick left out: tests marked slow or above {QUICK_SECONDS} s by {SECONDS.name}; "
            f"all families but {', '.join(AXES)}; outside of test_identity.py all but "
            f"{QUICK_PARAMETERS} of each test's sets of parameters; the oldest transformers"
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--quick"):
        kept = _quick(items)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]
    if "PYTEST_XDIST_WORKER" in os.environ:
        for item in items:
            item.add_marker(pytest.mark.xdist_group(_group(item)))
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def _case(item: pytest.Item) -> object:
    """The family that a test is about; None for none."""
    return item.callspec.params.get("case") if hasattr(item, "callspec") else None


def _group(item: pytest.Item) -> str:
    """Tests of one group run in one process, after each other: models of a family are made once."""
    slow, case = item.get_closest_marker("slow"), _case(item)
    if slow is not None:
        return str(slow.kwargs.get("group", item.name))
    return case if isinstance(case, str) else item.path.stem


def _without_parameters(nodeid: str) -> str:
    return nodeid.partition("[")[0]


def _quick(items: list[pytest.Item]) -> set[pytest.Item]:
    """Another part of the families and parameters for every test, but the same in every run."""
    seconds = json.loads(SECONDS.read_text(encoding="utf-8"))
    by_test: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        test = _without_parameters(item.nodeid)
        if item.get_closest_marker("slow") is None and seconds.get(test, 0.0) <= QUICK_SECONDS:
            by_test[test].append(item)
    kept = set()
    for name, found in by_test.items():
        some = [item for item in found if _case(item) in AXES] or found
        of_identity = some[0].path.name == "test_identity.py"
        count = min(len(some), len(AXES) if of_identity else QUICK_PARAMETERS)
        first = zlib.crc32(name.encode())
        kept |= {some[(first + i * len(some) // count) % len(some)] for i in range(count)}
    return kept


@pytest.fixture(scope="session", autouse=True)
def deterministic_and_quiet() -> Iterator[None]:
    gc.freeze()  # a collection looks at nothing that was imported: it took half a second
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    torch.use_deterministic_algorithms(False)
    gc.unfreeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # whatever the test before has chosen


@pytest.fixture
def float32_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration computes in the model's own precision, whatever the CPU multiplies faster."""
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: False)

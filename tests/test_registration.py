"""`AutoModelForCausalLM.from_pretrained` loads saved models once the package is imported, in either
order of imports, and importing the package alone imports neither torch nor transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cacheshrink_hybrid import save_mla_model
from tests.models import pair
from tests.subprocesses import run_python

OURS, THEIRS = "import cacheshrink_hybrid", "from transformers import AutoModelForCausalLM"
ORDERS = {
    # Who only asks whether transformers has a module gets an answer, and loads nothing of it.
    "ours first": (
        OURS,
        "from importlib.util import find_spec",
        "assert find_spec('transformers.models.auto.modeling_auto') is not None",
        "assert 'transformers.models.auto.modeling_auto' not in sys.modules",
        THEIRS,
    ),
    "theirs first": (THEIRS, OURS),
    "what saved models import": ("import cacheshrink_hybrid.auto", THEIRS),
    "deep inside ours": ("import cacheshrink_hybrid.checkpoint.auto_config", THEIRS),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved") / "small"
    save_mla_model(pair("llama").converted, None, directory)
    return directory


def run(*lines: str) -> list:
    done = run_python("-c", "\n".join(["import json, sys", *lines]))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_order_of_imports(order: tuple[str, ...], saved: Path) -> None:
    loaded, finder = run(
        *order,
        f"model = AutoModelForCausalLM.from_pretrained({str(saved)!r})",
        "module = sys.modules['transformers.models.auto.modeling_auto']",
        "print(json.dumps([hasattr(model, 'kernel_backend'), "
        "type(module.__spec__.loader).__name__]))",
    )
    assert loaded
    assert finder == "SourceFileLoader"  # modules of transformers are left as without us


def test_import_alone_is_light() -> None:
    assert (
        run(
            OURS,
            "names = ('torch', 'transformers', 'numpy', 'datasets')",
            "print(json.dumps([name for name in names if name in sys.modules]))",
        )
        == []
    )

"""Lets the Auto classes of transformers load saved models, in either order of imports.

Importing transformers takes seconds, so nothing here does. Each Auto class is told of our types
when the module that defines it has been imported: at once if it has been already, else by a finder
that waits for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any


def _register_config() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from .auto import MODEL_TYPE, CacheShrinkConfig

    AutoConfig.register(MODEL_TYPE, CacheShrinkConfig, exist_ok=True)


def _register_model() -> None:
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    from .auto import CacheShrinkConfig, CacheShrinkForCausalLM

    AutoModelForCausalLM.register(CacheShrinkConfig, CacheShrinkForCausalLM, exist_ok=True)


AUTO_MODULES = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_model,
}


def register_when_imported() -> None:
    """Tell every Auto class of our types, now or when it is imported."""
    sys.meta_path.insert(0, _Waiting(AUTO_MODULES))
    for name, register in AUTO_MODULES.items():
        if name in sys.modules:
            register()


class _Waiting(MetaPathFinder):
    """Finds modules as the others do, and runs `actions[name]` after module `name`."""

    def __init__(self, actions: Mapping[str, Callable[[], None]]) -> None:
        self.actions = actions

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname not in self.actions:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _LoaderAndAction(spec.loader, self.actions[fullname])
        return spec


class _LoaderAndAction(Loader):
    """A loader that runs an action after its module, and leaves the module as without it."""

    def __init__(self, loader: Any, action: Callable[[], None]) -> None:
        self.loader = loader
        self.action = action

    def create_module(self, spec: ModuleSpec) -> Any:
        return self.loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        module.__loader__ = module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        self.action()

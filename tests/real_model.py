"""The real model for tests marked `real_model`, which are skipped where no index has it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from cacheshrink_hybrid.errors import ConfigError, OutputError
from scripts import real_model


@cache
def real_model_folder() -> Path:
    """The folder of `scripts/real_model.py`, made if need be; skips the test, and says why, where
    it cannot be."""
    pytest.importorskip("gguf")
    place = real_model.cache_folder()
    try:
        return real_model.unpack(real_model.fetch(place), place / real_model.NAME)
    except (ConfigError, OutputError) as error:
        pytest.skip(f"no real model: {error}")

"""The results so far, in one file that is renewed after every method: a run that was stopped goes
on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.writing import write_text

PROGRAM = "compare_peers"


class Results:
    """Records of methods by name.

    Args:
        file: JSON; read if it is there.
        settings: what every record depends on.
        environment: of this run.

    Raises:
        ConfigError: the file holds results of other settings, or something else.
    """

    def __init__(self, file: Path, settings: dict[str, Any], environment: dict[str, Any]) -> None:
        self.file, self.settings, self.environment = file, settings, environment
        self.records: dict[str, dict[str, Any]] = {}
        if not file.exists():
            return
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            known, records = found["settings"], found["records"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{file} holds no results of this program ({error}); give another file"
            ) from error
        other = [key for key in settings if known.get(key) != settings[key]]
        if other:
            raise ConfigError(
                f"{file} holds results of other settings ({', '.join(other)}); give another file, "
                "or remove it"
            )
        self.records = {record["method"]: record for record in records}

    def add(self, record: dict[str, Any]) -> None:
        """Keep a method's record, in the place of an earlier one, and renew the file."""
        self.records[record["method"]] = record
        write_text(self.file, json.dumps(self.summary(), indent=1) + "\n")

    def summary(self) -> dict[str, Any]:
        return {
            "program": PROGRAM,
            "environment": self.environment,
            "settings": self.settings,
            "records": list(self.records.values()),
        }

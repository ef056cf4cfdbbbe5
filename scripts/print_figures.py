"""Write the measured tables of README.md, docs/MEASURED.md and docs/VLLM.md from eval/results.

    python -m scripts.print_figures              # rewrite every block of figures
    python -m scripts.print_figures --check      # say which blocks are not what the results give
    python -m scripts.print_figures --commands   # a bash script that measures all of them again

A block stands between `<!-- figures: NAME -->` and `<!-- end of figures -->`, and holds the table
of the study of that name (`scripts/figures/studies.py`), the commands that measure it, and the
commit and versions of its results. `<!-- table: NAME -->` begins one with the table alone.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from .figures.markdown import source_of
from .figures.studies import OUTPUT, RESULTS, STUDIES, Study

CHECKOUT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "docs/MEASURED.md", "docs/VLLM.md")
NOT_MEASURED = "Not measured yet."
BLOCK = re.compile(
    r"(<!-- (?P<kind>figures|table): (?P<name>[^\n]*?) -->\n).*?(<!-- end of figures -->)",
    re.DOTALL,
)


def main(argv: Sequence[str] | None = None) -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="change nothing; status 1 if stale")
    what.add_argument("--commands", action="store_true", help="print what measures the figures")
    given = parser.parse_args(argv)
    if given.commands:
        print(script())
        return 0
    changed = False
    for name in DOCUMENTS:
        path = CHECKOUT / name
        before = path.read_text(encoding="utf-8")
        after = filled(before)
        if after != before:
            changed = True
            print(f"{name}: figures differ from {RESULTS}" if given.check else f"{name} rewritten")
            if not given.check:
                path.write_text(after, encoding="utf-8")
    return int(changed and given.check)


def filled(document: str) -> str:
    """`document` with every block of figures as the results give it."""
    studies = {study.name: study for study in STUDIES}

    def block(match: re.Match[str]) -> str:
        study = studies[match["name"]]
        shown = figures(study) if match["kind"] == "figures" else table(study)
        return f"{match[1]}{shown}\n{match[4]}"

    return BLOCK.sub(block, document)


def table(study: Study) -> str:
    return study.shown(_results(study)) if is_measured(study) else NOT_MEASURED


def is_measured(study: Study) -> bool:
    return all((CHECKOUT / RESULTS / name).is_file() for name in study.results)


def figures(study: Study) -> str:
    """The study's table, its commands, and where its results come from."""
    files = ", ".join(f"`{name}`" for name in study.results)
    commands = "\n".join(study.commands)
    origin = f"\n\nResults: {files}; {source_of(_results(study))}." if is_measured(study) else ""
    return f"{table(study)}{origin}\n\n```bash\n{commands}\n```"


def script() -> str:
    """Commands of all studies, in order, as a bash script."""
    lines = [
        "set -euo pipefail",
        ': "${MODELS:?directory of the models that docs/MEASURED.md names}"',
        ': "${DATA:?directory of the texts that docs/MEASURED.md names}"',
        "export OMP_NUM_THREADS=1  # but where a command has --threads",
        f"mkdir -p {OUTPUT}",
    ]
    for study in STUDIES:
        lines += [f"echo '{study.name}' >&2", *study.commands]
    return "\n".join([*lines, "python -m scripts.print_figures"])


def _results(study: Study) -> list[dict]:
    return [
        json.loads((CHECKOUT / RESULTS / name).read_text(encoding="utf-8"))
        for name in study.results
    ]


if __name__ == "__main__":
    raise SystemExit(main())

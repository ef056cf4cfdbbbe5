"""Write the list of supported models in README.md from the table of model families.

    python -m scripts.list_families              # rewrite it

It stands between `<!-- families -->` and `<!-- end of families -->`.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from cacheshrink_hybrid.families import ENCODER_DECODERS, FAMILIES
from cacheshrink_hybrid.families.states import MIXERS
from cacheshrink_hybrid.families.vision import TEXT_MODELS
from cacheshrink_hybrid.states.kinds import MIXER_KINDS

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCK = re.compile(r"(<!-- families -->\n).*?(<!-- end of families -->)", re.DOTALL)
WIDTH = 100


def main(argv: Sequence[str] | None = None) -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(argv)
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


def filled(document: str) -> str:
    """`document` with the list as the table gives it."""
    return BLOCK.sub(lambda match: f"{match[1]}{families()}{match[2]}", document)


def families() -> str:
    """Names of model types, by what layers they have."""
    attending: list[str] = []
    latent: list[str] = []
    hybrid: list[str] = []
    recurrent: list[str] = []
    for name in sorted(FAMILIES):
        if FAMILIES[name].caches_latents:
            latent.append(name)
        elif name not in MIXERS:
            attending.append(name)
        elif FAMILIES[name].attends:
            reach = "" if MIXERS[name].kind in MIXER_KINDS else " (its attention only)"
            hybrid.append(name + reach)
        else:
            recurrent.append(name)
    lists = (
        ("Attention only", attending),
        ("Attention over latents of their own (MLA), which are coded", latent),
        ("Hybrids", hybrid),
        ("Without attention, which are given a `state_ratio`", recurrent),
        ("Vision-language, converted as a whole", sorted(TEXT_MODELS)),
        ("Encoder-decoder, for `generate()`", sorted(ENCODER_DECODERS)),
    )
    return "".join(
        textwrap.fill(f"- {title}: {', '.join(names)}.", WIDTH, subsequent_indent="  ") + "\n"
        for title, names in lists
    )


if __name__ == "__main__":
    raise SystemExit(main())

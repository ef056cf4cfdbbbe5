"""Cut the texts that some figures are measured on out of books and Python's documentation.

    python -m scripts.figures.texts BOOKS OUTPUT

BOOKS is a directory of text files, `pride_and_prejudice.txt` among them. Written to OUTPUT:
`book.txt`, characters 20,000 to 50,000 of that book; `other_books.txt`, characters 20,000 to 22,000
of each of the first 12 others by name; `beginnings.txt`, the first 1,600 characters of every
document that the shipped model has not seen, as one document.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cacheshrink_hybrid.demo.corpus import held_out_text

BOOK = "pride_and_prejudice.txt"
NUM_OTHERS = 12
CHARACTERS_OF_BEGINNING = 1600


def main(argv: Sequence[str] | None = None) -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("books", type=Path, metavar="BOOKS")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    given = parser.parse_args(argv)
    book = given.books / BOOK
    others = [path for path in sorted(given.books.glob("*.txt")) if path != book][:NUM_OTHERS]
    if not book.is_file() or len(others) < NUM_OTHERS:
        parser.error(f"{given.books} needs {BOOK} and {NUM_OTHERS} other text files")
    texts = {
        "book.txt": _read(book)[20_000:50_000],
        "other_books.txt": "\n<|endoftext|>\n".join(_read(path)[20_000:22_000] for path in others),
        "beginnings.txt": "\n\n".join(text[:CHARACTERS_OF_BEGINNING] for text in held_out_text()),
    }
    given.output.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (given.output / name).write_text(text, encoding="utf-8")
    return 0


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())

"""`python -m eval.prefix` is the program `cacheshrink-hybrid prefix`."""

import sys

from cacheshrink_hybrid.cli import run

if __name__ == "__main__":
    sys.exit(run("prefix", None))

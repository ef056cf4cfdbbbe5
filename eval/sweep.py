"""`python -m eval.sweep` is the program `cacheshrink-hybrid sweep`."""

import sys

from cacheshrink_hybrid.cli import run

if __name__ == "__main__":
    sys.exit(run("sweep", None))

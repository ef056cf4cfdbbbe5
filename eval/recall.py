"""`python -m eval.recall` is the program `cacheshrink-hybrid recall`."""

import sys

from cacheshrink_hybrid.cli import run

if __name__ == "__main__":
    sys.exit(run("recall", None))

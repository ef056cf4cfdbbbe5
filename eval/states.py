"""`python -m eval.states` is the program `cacheshrink-hybrid states`."""

import sys

from cacheshrink_hybrid.cli import run

if __name__ == "__main__":
    sys.exit(run("states", None))

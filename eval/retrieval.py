"""`python -m eval.retrieval` is the program `cacheshrink-hybrid retrieval`."""

import sys

from cacheshrink_hybrid.cli import run

if __name__ == "__main__":
    sys.exit(run("retrieval", None))

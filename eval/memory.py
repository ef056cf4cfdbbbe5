"""`python -m eval.memory` is the program `cacheshrink-hybrid memory`."""

import sys

from cacheshrink_hybrid.cli import run

if __name__ == "__main__":
    sys.exit(run("memory", None))

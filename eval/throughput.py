"""`python -m eval.throughput` is the program `cacheshrink-hybrid throughput`."""

import sys

from cacheshrink_hybrid.cli import run

if __name__ == "__main__":
    sys.exit(run("throughput", None))

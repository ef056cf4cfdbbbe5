"""`python -m eval.allocator` is the program `cacheshrink-hybrid allocator`."""

import sys

from cacheshrink_hybrid.cli import run

if __name__ == "__main__":
    sys.exit(run("allocator", None))

"""`python -m eval.perplexity` is the program `cacheshrink-hybrid perplexity`."""

import sys

from cacheshrink_hybrid.cli import run

if __name__ == "__main__":
    sys.exit(run("perplexity", None))

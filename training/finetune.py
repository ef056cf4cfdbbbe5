"""`python -m training.finetune` is the program `cacheshrink-hybrid finetune`."""

import sys

from cacheshrink_hybrid.cli import run

if __name__ == "__main__":
    sys.exit(run("finetune", None))

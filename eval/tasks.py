"""`python -m eval.tasks` is the program `cacheshrink-hybrid tasks`."""

import sys

from cacheshrink_hybrid.cli import run

if __name__ == "__main__":
    sys.exit(run("tasks", None))

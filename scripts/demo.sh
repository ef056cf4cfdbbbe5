#!/usr/bin/env bash
# The main job on the model that ships with the package: convert it, measure perplexity, recall and
# live cache bytes before and after, generate, save, load again. Sets up its own environment.
# The first figures come within half a minute of the installation; `--full` reads more text.
# Arguments go to `cacheshrink-hybrid demo`; results are written to out/demo.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec cacheshrink-hybrid demo --output out/demo "$@"

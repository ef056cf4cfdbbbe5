#!/usr/bin/env bash
# The API reference, from the docstrings, as HTML under out/api (or the directory given). Fails where
# a docstring names a part of the package that is not there. Sets up its own environment.
CACHESHRINK_EXTRAS=docs
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec python -m scripts.build_docs "${1:-out/api}"

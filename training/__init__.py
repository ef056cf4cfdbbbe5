"""Command-line programs of training; the code is in `cacheshrink_hybrid`."""

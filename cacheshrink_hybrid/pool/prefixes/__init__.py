"""Prefixes that are kept for requests which begin alike."""

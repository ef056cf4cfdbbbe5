"""Measured figures: which command measures each, and how README.md and docs/ show it."""

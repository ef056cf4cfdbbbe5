"""Saving and loading converted models, and the files that this takes."""

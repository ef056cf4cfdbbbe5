"""Attention over latents: the module that takes the place of a source's, and its ways to read."""

"""Converted models in the formats of other engines."""

"""The modules that take the place of a source model's own."""

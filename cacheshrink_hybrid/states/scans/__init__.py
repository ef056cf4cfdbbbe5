"""The recurrences as pure functions."""

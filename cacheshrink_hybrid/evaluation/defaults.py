"""What measurements take where nothing else is said, known without torch."""

DEFAULT_CHUNK = 64
"""Tokens per forward pass on top of a cache."""
DEFAULT_LENGTHS = (128, 512, 1024, 2048)
"""Tokens whose caches are measured."""
DEFAULT_DISTANCES = (64, 256, 1024)
"""Tokens between what recall exercises show and its return."""
RETRIEVAL_TASKS = ("needle", "keys")
"""Tasks of `retrieval_texts`."""
RETRIEVAL_LENGTHS = (1024, 2048, 4096, 8192)
"""Tokens of prompts in which something is to be found."""

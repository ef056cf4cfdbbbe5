"""Names of codes as settings give them, known without torch."""

HALF_FORMATS = ("float16", "bfloat16")
"""Number formats of 16-bit channels."""
BYTE_FORMATS = ("uniform", "e4m3", "e5m2")
"""What 8-bit channels hold: uniform levels, or 8-bit floats."""
STATE_CODES = ("float32", "float16", "bfloat16", "int8", "float8")
"""How recurrent states are stored."""

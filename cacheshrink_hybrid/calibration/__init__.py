"""The text that conversions are fitted to, and what running it through a source leaves behind."""

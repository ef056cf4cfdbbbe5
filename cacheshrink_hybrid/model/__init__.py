"""The converted model: its class, its compressed modules, and the original that it may keep."""

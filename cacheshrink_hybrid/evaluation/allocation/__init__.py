"""A study of cache allocators: request traces, allocators as others build them, and replays."""

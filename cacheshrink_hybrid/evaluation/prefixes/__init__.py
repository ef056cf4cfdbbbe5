"""A study of prefix reuse: requests that begin alike, and a simulator that serves them."""

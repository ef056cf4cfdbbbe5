"""What keeps keys and values smaller, ours among others, each in a file of its own: caches of other
projects by their packages, published formats by codecs that store the very bytes."""

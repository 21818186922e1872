"""A crash-safe store of vectors, the searchers over it, and the index of a handbook."""

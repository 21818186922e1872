"""Questions as vectors, and the similarity of two questions."""

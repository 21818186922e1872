"""Statements as keys: the relation that a caption states, and the caption with its objects masked."""

"""Recall of a behavior for a caption, and the measurement of its precision and recall."""

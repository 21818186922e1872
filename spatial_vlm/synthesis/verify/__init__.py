"""Checks of drafts, selection of a training set, and the report."""

"""Chains of thought written by a teacher and kept only when verified."""

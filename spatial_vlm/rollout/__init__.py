"""Sampling answers from a policy."""

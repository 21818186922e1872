"""Clients of the teachers."""

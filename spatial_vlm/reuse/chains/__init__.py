"""Reads the comparisons of a chain of thought as data, and checks them against its boxes and its verdict."""

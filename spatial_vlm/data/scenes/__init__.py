"""Rendered scenes with statements about them."""

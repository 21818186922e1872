"""Checks, selection and report of written chains."""

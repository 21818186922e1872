"""Measures the programs that the commands run, next to the limits of the machine and next to transformers."""

"""Behaviors, the handbook that keeps the most useful ones, and the file in which people review it."""

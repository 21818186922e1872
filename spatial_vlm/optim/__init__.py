"""Optimizers and schedules, and the storage of their moments."""

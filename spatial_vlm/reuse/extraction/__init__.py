"""Extractors: functions from correct chains to behaviors, by name."""

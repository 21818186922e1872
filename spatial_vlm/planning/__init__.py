"""Ahead-of-time compilation for TPU topologies: memory, traffic and time of a run's programs, without a TPU."""

"""Qwen3-VL in JAX: configuration, both towers, and pure functions over stacked parameters."""

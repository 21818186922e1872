"""Qwen3-VL in JAX: configuration, towers, pure functions over stacked parameters, Hugging Face weights."""

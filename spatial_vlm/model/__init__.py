"""Models in JAX as pure functions over stacked parameters: Qwen3-VL, and XLM-RoBERTa with BGE-M3's heads."""

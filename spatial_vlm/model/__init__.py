"""Models in JAX as pure functions over stacked parameters: Qwen3-VL (both towers) and XLM-RoBERTa with BGE-M3's heads."""

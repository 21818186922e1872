"""Parameters by path: their shardings, which of them train, LoRA factors, int8 kernels."""

"""Parameters by path: how they are sharded, which of them train, low-rank adapters, int8 kernels."""

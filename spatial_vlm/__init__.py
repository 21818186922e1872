"""Vision-language models that reason about space: SFT, DAPO and behavior reuse in JAX."""

__version__ = "0.1.0"

"""Vision-language models that reason about space: SFT, DAPO and behavior reuse in JAX."""

import os

# With TensorFlow installed (extra bge-m3), etils would read and write gs:// by TensorFlow instead of fsspec, whose
# errors, caches and credentials `remote` counts on.
os.environ.setdefault("EPATH_USE_TF", "0")

__version__ = "0.1.0"

"""One file per command of `spatial-vlm`; see `spatial_vlm.cli` for what each of them provides."""

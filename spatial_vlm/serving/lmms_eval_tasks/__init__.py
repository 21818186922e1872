"""A task for lmms-eval (`--include_path`): statements about rendered scenes."""

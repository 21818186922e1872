"""Jitted training steps, and the loops over them: generators that read no file and write none."""

"""What is known of the settings without running a command: their ranges, and the comments on them."""

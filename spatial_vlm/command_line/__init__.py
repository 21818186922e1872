"""What the command line shows and reads: help pages, arguments, completion. Nothing here imports the work."""

"""What a program needs of a chip: read from the program itself, compiled ahead of time."""

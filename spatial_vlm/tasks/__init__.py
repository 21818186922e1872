"""Tasks: how records are read, questions are put, and answers are parsed and scored."""

"""What answers are worth: figures of merit with intervals, paired tests, the report and its
pictures."""

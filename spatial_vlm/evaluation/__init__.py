"""Scores of answers with intervals, paired tests, the report and its figures."""

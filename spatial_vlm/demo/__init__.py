"""The whole method at tiny scale: its stages, the order in which they run, and the report."""

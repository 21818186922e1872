"""Asking a policy: loading, questions, batched generation, stored answers."""

"""Recurring reasoning, stored as named behaviors and recalled instead of derived again.

Didolkar et al., Metacognitive Reuse (arXiv 2509.13237), for spatial statements: `extractors` name the procedures that
correct chains share, `behaviors` stores them in a handbook, `embedder` and `index` find the behavior of a question, and
`inference.questions` chooses between the short answer and the full chain.
"""

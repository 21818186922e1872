"""Recurring reasoning, stored as named behaviors and recalled instead of derived again.

Didolkar et al., Metacognitive Reuse (arXiv 2509.13237), for spatial statements: `extraction` names the procedure
that the policy's own correct chains share, `behaviors` stores it in a handbook, `embedder` and `index` find the
behavior of a question, and `inference.questions` chooses between the short answer and the full chain.
"""

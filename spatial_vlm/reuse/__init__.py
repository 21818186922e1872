"""Recurring reasoning, stored as named behaviors and recalled instead of derived again.

Didolkar et al., Metacognitive Reuse (arXiv 2509.13237), for spatial statements. `chains` reads correct chains,
`extraction` names the procedures that they share, `handbook` keeps the useful ones; `embedding`, `index`, `retrieval`
find the behavior of a question, and `inference.questions` chooses between the short answer and the full chain.
"""

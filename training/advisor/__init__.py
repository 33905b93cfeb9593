"""Says how to adapt the base to some data, from what it measures on both: docs/training.md.

Nothing is imported here: request.py, which a body is checked with, needs no torch.
"""

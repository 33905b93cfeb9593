"""The batched low-rank path: one interface, a plain-torch reference, a CPU form.

Knows tensors and segments only: no adapters by name, no model, no scheduler.
"""

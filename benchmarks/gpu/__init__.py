"""Benchmarks that need a CUDA device. Never run yet: there was none where they were written."""

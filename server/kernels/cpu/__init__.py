"""Kernels for CPUs: the native library with its wrappers, and the low-rank path in plain torch."""

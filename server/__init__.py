"""The inference server: HTTP in api/, generation in engine/, adapters at run time in adapters/."""

__version__ = "0.1.0"

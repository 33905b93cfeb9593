"""A study that is killed and goes on, and what it gains: `python -m benchmarks tune`."""

from benchmarks.tune.command import app

__all__ = ["app"]

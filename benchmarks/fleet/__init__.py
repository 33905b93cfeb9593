"""Many adapters on one server: `python -m benchmarks fleet`."""

from benchmarks.fleet.command import app

__all__ = ["app"]

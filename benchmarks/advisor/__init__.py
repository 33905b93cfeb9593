"""Whether the advisor's verdicts hold: `python -m benchmarks advisor`."""

from benchmarks.advisor.command import app

__all__ = ["app"]

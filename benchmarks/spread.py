"""A figure measured several times: its median, least and most."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Spread:
    median: float
    least: float
    most: float

    def text(self, digits: int = 1) -> str:
        return f"{self.median:.{digits}f} ({self.least:.{digits}f}-{self.most:.{digits}f})"


def spread(values: Sequence[float]) -> Spread:
    """Raises ValueError if there are none."""
    if not values:
        raise ValueError("no measurement to summarise")
    return Spread(median(values), min(values), max(values))


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Of each repeat's pair, so that a slow minute that both went through cancels out."""
    return spread([a / b for a, b in zip(above, below, strict=True)])

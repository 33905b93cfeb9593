"""Whether a model serves the groups that data name equally well.

Here: difference. Not here: where groups come from (examples.py), what is flagged (rules.py).

The test is a permutation test (Fisher 1935; Good 2005, "Permutation, Parametric and Bootstrap
Tests of Hypotheses"): labels are shuffled over rows, and p is how often the worst and the best
group are then as far apart. It takes no form of distribution, and any number of groups at once.
"""

from collections.abc import Sequence
from random import Random
from statistics import fmean

from training.advisor.evidence import Difference

LEAST_ROWS = 8
"""Groups with fewer held-out rows are left out."""

SHUFFLES = 2000


def difference(
    model: str,
    groups: Sequence[str | None],
    losses: Sequence[float],
    right: Sequence[bool] | None,
    *,
    seed: int = 0,
) -> Difference | None:
    """By row: its group, its mean loss, whether its answer is right (of the first rows only).

    None if there are not two groups to compare.
    """
    names = sorted({one for one in groups if one is not None})
    rows = {name: [at for at, one in enumerate(groups) if one == name] for name in names}
    rows = {name: own for name, own in rows.items() if len(own) >= LEAST_ROWS}
    if len(rows) < 2:
        return None
    means = {name: fmean(losses[at] for at in own) for name, own in rows.items()}
    found = max(means.values()) - min(means.values())
    pool = [losses[at] for own in rows.values() for at in own]
    sizes = [len(own) for own in rows.values()]
    rng, as_far = Random(seed), 0
    for _ in range(SHUFFLES):
        rng.shuffle(pool)
        as_far += _spread(pool, sizes) >= found - 1e-12
    scores = [(name, len(own), means[name], _share(own, right)) for name, own in rows.items()]
    scores.sort(key=lambda one: -one[2])
    # The order that was found counts as one of the shuffles: p is never 0.
    return Difference(model, tuple(scores), found, (as_far + 1) / (SHUFFLES + 1))


def _spread(pool: Sequence[float], sizes: Sequence[int]) -> float:
    means, start = [], 0
    for size in sizes:
        means.append(fmean(pool[start : start + size]))
        start += size
    return max(means) - min(means)


def _share(rows: Sequence[int], right: Sequence[bool] | None) -> float | None:
    """Of the group's answers that were asked for, those that are right."""
    asked = [right[at] for at in rows if right is not None and at < len(right)]
    return fmean(asked) if asked else None

"""What rank a full fine-tune's weight changes have: how many singular values hold 90 % of them.

Here: before, spectrum. Not here: training, what follows (rules.py).

Energy is the sum of squared singular values, so the share that a rank holds is what the best
approximation of that rank keeps of the change's squared norm (Eckart & Young 1936). Rank 90 % of a
change is how "LoRA Learns Less and Forgets Less" (arXiv:2405.09673) measures it.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from training.advisor.evidence import Spectrum

HELD = 0.9
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def before(model: Any, paths: Sequence[str]) -> dict[str, Tensor]:
    """Copies of these modules' weights, on the CPU, to hold what comes of them against."""
    return {path: model.get_submodule(path).weight.detach().cpu().clone() for path in paths}


def spectrum(model: Any, old: Mapping[str, Tensor]) -> Spectrum:
    """Of the changes since `before`. A module that did not change has rank 0."""
    ranks, sides, shares = [], [], []
    for path, weight in old.items():
        now = model.get_submodule(path).weight.detach()
        change = now.float() - weight.to(now.device).float()  # [out, in]
        if not bool(change.isfinite().all()):  # the run diverged: no rank holds that
            change = torch.eye(*change.shape, device=change.device)
        energy = torch.linalg.svdvals(change).square().double()
        held = (energy.cumsum(0) / energy.sum().clamp_min(1e-30)).cpu()
        ranks.append(int((held < HELD).sum()) + 1 if energy.sum() > 0 else 0)
        sides.append(len(energy))
        shares.append([float(held[min(rank, len(held)) - 1]) for rank in RANKS])
    known = [number for number, rank in enumerate(RANKS) if rank <= max(sides)]
    return Spectrum(
        rank90=round(statistics.median(ranks)),
        largest_rank90=max(ranks),
        width=round(statistics.median(sides)),
        energy_at=tuple(
            (RANKS[number], statistics.fmean(one[number] for one in shares)) for number in known
        ),
    )

"""From evidence to a verdict: rules with a measured quantity, a threshold and a source each.

Here: judge, Verdict, Finding, the thresholds. Not here: measuring. A pure function: the same
evidence gives the same verdict, and every finding says what it rests on.

Sources: LoRA arXiv:2106.09685; rsLoRA arXiv:2312.03732; QLoRA arXiv:2305.14314; DoRA
arXiv:2402.09353; "LoRA Learns Less and Forgets Less" arXiv:2405.09673; prompt tuning
arXiv:2104.08691; "LoRA Without Regret", Schulman et al. 2025 (thinkingmachines.ai/blog/lora);
tokens arXiv:2405.05417, arXiv:2012.15613. The thresholds are this project's own but where a source
is said to give one.
"""

from dataclasses import dataclass
from typing import Literal

from training.advisor.costs import cost
from training.advisor.evidence import Evidence, Memory, Part, Probe, Spectrum

SOLVED = 0.95
"""Exact match of the base alone from which there is nothing to train for."""
LEAST_GAIN = 0.01
"""Relative: a probe that takes less off the base's held-out loss has learnt nothing."""
NEAR = 0.02
"""Relative: a method within this of full fine-tuning's loss is as good."""
FAR = 0.05
"""Relative: the best PEFT probe above full fine-tuning by more than this underfits …"""
ERRORS = 2.0
"""… if the gap is also more than so many of its standard errors."""
DOUBLINGS = 2
"""A trend closes a gap if it is within NEAR after the budget has been doubled so often."""
RANK_SHARE = 1 / 8
"""Of the width: a weight change whose 90 % take more is no low-rank one. An adapter of that rank
trains a quarter as much as the module has; higher ones are not probed (campaign.py)."""
SAME = 0.01
"""Relative: of two probes this near, the one that costs less is taken."""
TOKENS_GAIN = 0.02
"""Relative: trained tokens or embeddings that take less off LoRA's loss are not worth it."""
UNTRAINED = 0.001
"""Share of the data's tokens that the base was never trained on."""
FERTILITY = 1.5
"""Times the general text's tokens a character."""
UNKNOWN = 0.001
GROUP_P = 0.05
ROOM = 0.8
"""Of the free memory: a job that wants more may not fit."""
FOUR_BITS = 0.52
"""Bytes of a parameter in NF4 with its constants quantised too (QLoRA, section 3)."""

Kind = Literal["none", "peft", "full", "unclear"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule found."""

    rule: str
    measured: str
    threshold: str
    holds: bool
    says: str
    source: str


@dataclass(frozen=True, slots=True)
class Verdict:
    kind: Kind
    summary: str
    choice: Probe | None  # what is recommended; None: nothing is to be trained
    best_peft: Probe | None
    full: Probe | None
    gap: float | None  # relative, of the best PEFT probe above full fine-tuning
    findings: tuple[Finding, ...]


def judge(evidence: Evidence) -> Verdict:
    """The verdict, with a finding of every rule that could be applied."""
    choice, findings = _adapter(evidence)
    peft = evidence.best("rate", "rank", "variant", "targets", "tokens", "embeddings", "prompt")
    full = evidence.best("full")
    gap = None if peft is None or full is None else _above(peft.loss, full.loss)
    findings += [_solved(evidence), _gain(evidence), *_data(evidence)]
    wrong = [] if gap is None or peft is None or full is None else _wrong(evidence, peft, full)
    findings += wrong + _rates(evidence, peft) + _forgetting(evidence) + _groups(evidence)
    kind, summary = _concluded(findings, evidence, choice, peft, full, gap)
    if kind == "full":
        choice = full
    elif kind == "none":
        choice = None
    return Verdict(kind, summary, choice, peft, full, gap, tuple(findings))


def _concluded(
    findings: list[Finding],
    evidence: Evidence,
    choice: Probe | None,
    peft: Probe | None,
    full: Probe | None,
    gap: float | None,
) -> tuple[Kind, str]:
    holds = {one.rule for one in findings if one.holds}
    if "solved already" in holds:
        return "none", "The base answers these examples as it is: train nothing."
    if "nothing is learnt" in holds or choice is None or peft is None:
        return "none", (
            "No probe has taken anything worth the while off the held-out loss: more or other data "
            "are needed before a method is."
        )
    if full is None or gap is None:
        return "peft", (
            f"{choice.name} is the best that was found. There is no yardstick: full fine-tuning "
            f"was not probed ({evidence.full_left_out})."
        )
    sought = len({one.multiplier for one in evidence.probes if one.part == "full"}) > 1
    edge = sought and "rate of full fine-tuning" not in holds
    told = " Full's best rate is at the edge of those tried: it may do better." if edge else ""
    measured = f"the best PEFT probe ({peft.name}) has a held-out loss {_percent(gap)} full's"
    behind = {"gap to full", "gap stays"} <= holds
    if behind and not _rate_found(findings):
        return "unclear", (
            f"PEFT underfits within this budget: {measured}, and the trend does not close that, "
            "but its best rate is at the edge of those tried. Try others."
        )
    if behind and "change is of high rank" in holds:
        return "full", (
            f"PEFT is the wrong tool here: {measured}, the trend does not close that, and the "
            "full fine-tune's change is of high rank."
        )
    if behind:
        return "unclear", (
            f"PEFT underfits within this budget: {measured}, and the trend does not close that, "
            "though the full fine-tune's change is of low rank. Compare long runs of both."
        )
    if "gap to full" in holds:
        return "peft", (
            f"{choice.name}, trained for longer than the probes: {measured}, and the trend closes "
            "that."
        )
    if gap <= NEAR:
        return "peft", f"{choice.name}: {measured}: nothing is lost within the budget.{told}"
    return (
        "peft",
        f"{choice.name}: {measured}, which is little, or within chance, within the budget.{told}",
    )


def _rate_found(findings: list[Finding]) -> bool:
    """Whether every adapter's best rate lies between worse ones. (A better one for full
    fine-tuning could only widen the gap.)"""
    rates = [one for one in findings if one.rule.startswith("rate of ")]
    return all(one.holds for one in rates if one.rule != "rate of full fine-tuning")


def _adapter(evidence: Evidence) -> tuple[Probe | None, list[Finding]]:
    """The adapter that is recommended, whatever full fine-tuning does."""
    lora = evidence.best("rate", "rank")
    if lora is None:
        return None, []
    choice, rank = _rank(evidence, lora)
    findings = [rank, _higher(evidence, choice)]
    for one in (_targets(evidence, choice), _variant(evidence, choice), _prompt(evidence, choice)):
        if one is not None:
            findings.append(one[1])
            choice = one[0] if one[1].holds else choice
    tokens = _tokens(evidence)
    if tokens is not None:
        findings.append(tokens[1])
        choice = tokens[0] if tokens[1].holds else choice
    if evidence.memory is not None:
        findings.append(_memory(evidence.memory, choice))
    return choice, findings


def _memory(memory: Memory, choice: Probe) -> Finding:
    """Whether the base had better be held in 4 bits."""
    needed = cost(
        choice, base_bytes=memory.base_bytes, base_parameters=memory.base_parameters, steps=1
    ).bytes
    free = memory.free_bytes
    small = FOUR_BITS * memory.base_parameters
    holds = free is not None and needed - memory.base_bytes > ROOM * free
    return Finding(
        "QLoRA",
        f"a job with {choice.name} takes some {needed / 1e9:.2f} GB, the base's weights "
        f"{memory.base_bytes / 1e9:.2f} GB of them ({small / 1e9:.2f} GB in 4 bits); free: "
        + ("not known" if free is None else f"{free / 1e9:.2f} GB, the base loaded"),
        f"more than {ROOM:.0%} of what is free, besides the base",
        holds,
        "hold the base in 4 bits: method qlora" if holds else "the base fits as it is",
        "QLoRA, sections 3 and 4",
    )


def _higher(evidence: Evidence, choice: Probe) -> Finding:
    """Whether ranks above those that were tried may do better."""
    ranks = sorted(
        (one for one in evidence.probes if one.part in ("rate", "rank")),
        key=lambda one: (one.rank or 0, -one.loss),
    )
    top = ranks[-1]
    below = [one for one in ranks if one.rank != top.rank]
    gain = 0.0 if not below else -_above(top.loss, min(one.loss for one in below))
    holds = bool(below) and choice.rank == top.rank and gain > SAME
    return Finding(
        "higher ranks",
        f"rank {top.rank}, the highest tried, takes {gain:.1%} off the loss of those below",
        f"more than {SAME:.0%}",
        holds,
        "a higher rank may do better: method rslora, whose scale stays stable there"
        if holds
        else "no higher rank is called for",
        "rsLoRA (a scale of alpha / r makes high ranks learn no more than low ones)",
    )


def _rank(evidence: Evidence, lora: Probe) -> tuple[Probe, Finding]:
    """The smallest rank that is as good as the best one, each at its best rate."""
    ranks: dict[int, Probe] = {}
    for one in evidence.probes:
        if one.part in ("rate", "rank"):
            assert one.rank is not None
            ranks[one.rank] = min(one, ranks.get(one.rank, one), key=lambda probe: probe.loss)
    choice = next(one for _, one in sorted(ranks.items()) if one.loss <= lora.loss * (1 + SAME))
    told = ", ".join(f"{rank}: {one.loss:.4f}" for rank, one in sorted(ranks.items()))
    return choice, Finding(
        "rank",
        f"held-out loss by rank: {told}",
        f"within {SAME:.0%} of the best",
        True,
        f"rank {choice.rank} suffices"
        + ("; no higher one was tried" if choice.rank == max(ranks) else ""),
        "LoRA, section 7.2; LoRA Learns Less and Forgets Less",
    )


def _targets(evidence: Evidence, choice: Probe) -> tuple[Probe, Finding] | None:
    """Attention alone, if that is as good as all linear modules at the same rank and rate."""
    narrow = evidence.best("targets")
    if narrow is None:
        return None
    wide = next(
        (
            one
            for one in evidence.probes
            if one.part in ("rate", "rank")
            and (one.rank, one.multiplier) == (narrow.rank, narrow.multiplier)
        ),
        choice,
    )
    above = _above(narrow.loss, wide.loss)
    holds = above <= SAME and narrow.parameters < choice.parameters
    return narrow, Finding(
        "targets",
        f"attention alone: {_percent(above)} all linear modules' loss",
        f"at most {SAME:.0%} above, with fewer parameters than the rank that suffices",
        holds,
        "adapt attention alone" if holds else "adapt all linear modules",
        "QLoRA, section 4 (all linear modules are needed to match full fine-tuning)",
    )


def _variant(evidence: Evidence, choice: Probe) -> tuple[Probe, Finding] | None:
    dora = evidence.best("variant")
    if dora is None:
        return None
    below = -_above(dora.loss, choice.loss)
    return dora, Finding(
        "DoRA",
        f"DoRA of rank {dora.rank}: {_percent(-below)} the chosen LoRA's loss",
        f"below it by more than {SAME:.0%}",
        below > SAME,
        "take DoRA" if below > SAME else "LoRA will do, and is quicker and served here",
        "DoRA, section 5 (its gains are at low ranks)",
    )


def _prompt(evidence: Evidence, choice: Probe) -> tuple[Probe, Finding] | None:
    prompt = evidence.best("prompt")
    if prompt is None:
        return None
    above = _above(prompt.loss, choice.loss)
    return prompt, Finding(
        "prompt tuning",
        f"prompt tuning: {_percent(above)} the chosen adapter's loss",
        f"at most {SAME:.0%} above",
        above <= SAME,
        "some virtual tokens do what an adapter would" if above <= SAME else "it does not do",
        "prompt tuning, section 3 (it matches full tuning only from some 10B parameters on)",
    )


def _tokens(evidence: Evidence) -> tuple[Probe, Finding] | None:
    """LoRA with trained tokens or embeddings, against plain LoRA at the same rank and rate."""
    found = [one for one in evidence.probes if one.part in ("tokens", "embeddings")]
    if not found:
        return None
    best = min(found, key=lambda one: one.loss)
    # Training only the tokens that want it costs less, and leaves the others as they were.
    choice = next(
        (one for one in found if one.part == "tokens" and one.loss <= best.loss * (1 + SAME)), best
    )
    plain = min(
        (one for one in evidence.probes if one.part in ("rate", "rank")), key=lambda one: one.loss
    )
    gain = -_above(choice.loss, plain.loss)
    holds = gain > TOKENS_GAIN
    return choice, Finding(
        "new tokens",
        f"{choice.name}: {choice.loss:.4f}; the best plain LoRA ({plain.name}): {plain.loss:.4f}, "
        f"{_percent(_above(plain.loss, choice.loss))} it",
        f"takes more than {TOKENS_GAIN:.0%} off the best plain LoRA's loss",
        holds,
        "train these tokens' embeddings too" if holds else "the embeddings can stay as they are",
        "Land & Bartolo (never-trained tokens); PEFT's trainable_token_indices, modules_to_save",
    )


def _solved(evidence: Evidence) -> Finding:
    match = evidence.exact_match
    return Finding(
        "solved already",
        "exact match of the base: " + ("not taken" if match is None else f"{match:.0%}"),
        f"at least {SOLVED:.0%}",
        match is not None and match >= SOLVED,
        "the base needs no training" if match is not None and match >= SOLVED else "train",
        "this project",
    )


def _gain(evidence: Evidence) -> Finding:
    best = min((one.loss for one in evidence.probes), default=evidence.base_loss)
    gain = -_above(best, evidence.base_loss)
    return Finding(
        "nothing is learnt",
        f"held-out loss: {evidence.base_loss:.4f} of the base, {best:.4f} of the best probe",
        f"less than {LEAST_GAIN:.0%} off the base's",
        gain < LEAST_GAIN,
        "the probes have learnt nothing" if gain < LEAST_GAIN else "the data can be learnt from",
        "this project",
    )


def _data(evidence: Evidence) -> list[Finding]:
    """The tokenizer, and the drift from what the base was trained on."""
    words = evidence.vocabulary
    ratio = words.tokens_per_character / max(words.general_tokens_per_character, 1e-9)
    findings = [
        Finding(
            "fertility",
            f"{words.tokens_per_word:.2f} tokens a word, {words.tokens_per_character:.3f} a "
            f"character; general text {words.general_tokens_per_word:.2f} and "
            f"{words.general_tokens_per_character:.3f}",
            f"{FERTILITY:g} times the general text's tokens a character",
            ratio >= FERTILITY,
            "the tokenizer cuts these data into small pieces: rows are long, and mean little to "
            "the base at first"
            if ratio >= FERTILITY
            else "the tokenizer suits the data",
            "Rust et al. 2021",
        ),
        Finding(
            "unknown tokens",
            f"{words.unknown_share:.2%} unknown, {words.byte_share:.2%} single bytes of characters "
            f"(general text: {words.general_byte_share:.2%})",
            f"{UNKNOWN:.1%} unknown",
            words.unknown_share >= UNKNOWN,
            "what is unknown cannot be learnt: the tokenizer lacks it"
            if words.unknown_share >= UNKNOWN
            else "next to nothing is unknown",
            "this project",
        ),
    ]
    if words.untrained_share is not None:
        holds = words.untrained_share >= UNTRAINED
        findings.append(
            Finding(
                "never-trained tokens",
                f"{words.untrained_share:.2%} of the tokens, {len(words.untrained)} in number",
                f"{UNTRAINED:.1%} of the tokens",
                holds,
                "the base has tokens for it, and never learnt what they mean" if holds else "none",
                "Land & Bartolo 2024",
            )
        )
    if evidence.general_loss is not None:
        drift = evidence.base_loss - evidence.general_loss
        findings.append(
            Finding(
                "drift",
                f"the base's loss: {evidence.base_loss:.3f} on the data, "
                f"{evidence.general_loss:.3f} on its own text",
                "1 nat a token",
                drift >= 1,
                "the data are far from what the base says by itself"
                if drift >= 1
                else "the data are near what the base says by itself",
                "LoRA Learns Less and Forgets Less (LoRA falls behind further from pre-training)",
            )
        )
    return findings


def _wrong(evidence: Evidence, peft: Probe, full: Probe) -> list[Finding]:
    """The three of which PEFT is the wrong tool if all hold."""
    gap = _above(peft.loss, full.loss)
    error = evidence.gap_error
    sure = error is None or peft.loss - full.loss > ERRORS * error
    told = "" if error is None else f" ({peft.loss - full.loss:.4f} ± {error:.4f} nats)"
    later = later_gap(peft, full)
    findings = [
        Finding(
            "gap to full",
            f"{peft.name}: {_percent(gap)} full fine-tuning's loss{told}",
            f"more than {FAR:.0%} above, and more than {ERRORS:g} standard errors",
            gap > FAR and sure,
            "PEFT is behind" if gap > FAR and sure else "PEFT keeps up",
            "LoRA Learns Less and Forgets Less",
        ),
        Finding(
            "gap stays",
            "the gap at half of the budget and its end: "
            f"{' → '.join(_percent(one) for one in gaps(peft, full)[-2:])}; after {DOUBLINGS} "
            f"more doublings, at that pace: {_percent(later)}",
            f"more than {NEAR:.0%} then",
            later > NEAR,
            "more steps will not close it" if later > NEAR else _closes(gap),
            "this project: the gap's factor from half of the budget to all of it is carried on",
        ),
    ]
    if evidence.spectrum is not None:
        findings.append(_spectrum(evidence.spectrum))
    return findings


def _closes(gap: float) -> str:
    return "more steps close it" if gap > NEAR else "there is none to close"


def _spectrum(found: Spectrum) -> Finding:
    holds = found.share > RANK_SHARE
    return Finding(
        "change is of high rank",
        f"90 % of the full fine-tune's change take rank {found.rank90} of {found.width} "
        f"({found.share:.0%}; the median over modules, {found.largest_rank90} at most)",
        f"more than {RANK_SHARE:.0%} of the width",
        holds,
        "no small rank holds it" if holds else f"rank {found.rank90} would have held it",
        "LoRA Learns Less and Forgets Less",
    )


def gaps(peft: Probe, full: Probe) -> tuple[float, ...]:
    """Relative, at the steps that both have a loss of, but the start."""
    others = dict(full.curve)
    return tuple(_above(loss, others[step]) for step, loss in peft.curve if step and step in others)


def later_gap(peft: Probe, full: Probe) -> float:
    """The gap after DOUBLINGS of the budget, if each makes it smaller as the last one did.

    A gap that has grown is taken to stay: short curves bear no bolder guess.
    """
    found = gaps(peft, full)
    last = found[-1]
    if len(found) < 3 or last <= 0 or found[-3] <= 0:
        return last
    half = found[-3]  # of the quarters: the second
    return last * min(1.0, last / half) ** DOUBLINGS


def _rates(evidence: Evidence, peft: Probe | None) -> list[Finding]:
    """Whether the best rate lies between worse ones: of LoRA, of the best adapter, of full."""
    parts: dict[Part, str] = {"rate": "LoRA"}
    if peft is not None and peft.part not in ("rate", "rank"):
        parts[peft.part] = peft.method + {"tokens": " + tokens", "embeddings": " + embeddings"}.get(
            peft.part, ""
        )
    parts["full"] = "full fine-tuning"
    return [
        _rate(name, {one.multiplier: one.loss for one in evidence.probes if one.part == part})
        for part, name in parts.items()
        if evidence.best(part) is not None
    ]


def _rate(name: str, tried: dict[float, float]) -> Finding:
    """`tried`: losses by multiple of the method's default rate."""
    best = min(tried, key=lambda one: tried[one])
    edge = best in (min(tried), max(tried))
    told = ", ".join(f"{one:.3g} x: {loss:.4f}" for one, loss in sorted(tried.items()))
    return Finding(
        f"rate of {name}",
        f"held-out loss by multiple of the default rate: {told}",
        "the best is not the least or the greatest tried",
        not edge,
        f"{best:.3g} x"
        + (" is at the edge of what was tried: others may be better" if edge else ""),
        "LoRA Without Regret (the default rates)",
    )


def _forgetting(evidence: Evidence) -> list[Finding]:
    before = evidence.general_loss
    lora, full = evidence.best("rate", "rank"), evidence.best("full")
    if before is None or lora is None or lora.general_loss is None:
        return []
    own = lora.general_loss - before
    if full is None or full.general_loss is None:
        other, holds = "", False
    else:
        growth = full.general_loss - before
        other, holds = f"; {growth:+.3f} by full fine-tuning", own < growth
    return [
        Finding(
            "LoRA forgets less",
            f"loss on the base's own text: {own:+.3f} by {lora.name}{other}",
            "less than by full fine-tuning",
            holds,
            "what is forgotten is told with every job's report; a gate can bound it",
            "LoRA Learns Less and Forgets Less",
        )
    ]


def _groups(evidence: Evidence) -> list[Finding]:
    return [
        Finding(
            f"groups under {one.model}",
            ", ".join(f"{name}: {loss:.3f} ({rows} rows)" for name, rows, loss, _ in one.scores)
            + f"; difference {one.difference:.3f} nats, p = {one.p:.3f}",
            f"p below {GROUP_P:g} in a permutation test",
            one.p < GROUP_P,
            f"{one.scores[0][0]} is served worse than {one.scores[-1][0]}, beyond chance"
            if one.p < GROUP_P
            else "no difference beyond chance",
            "Good 2005 (permutation tests)",
        )
        for one in evidence.groups
    ]


def _above(one: float, other: float) -> float:
    """How far above `other`, relatively."""
    return (one - other) / max(other, 1e-9)


def _percent(above: float) -> str:
    return f"{abs(above):.1%} {'below' if above < 0 else 'above'}"

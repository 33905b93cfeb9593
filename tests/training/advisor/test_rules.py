"""The rules at their edges: pure, each finding on its own measured quantity."""

from dataclasses import replace
from typing import Any

import pytest

from training.advisor.evidence import (
    Difference,
    Evidence,
    Memory,
    Part,
    Probe,
    Spectrum,
    Vocabulary,
)
from training.advisor.rules import Finding, Verdict, gaps, judge, later_gap

WORDS = Vocabulary(
    tokens_per_word=1.5,
    tokens_per_character=0.3,
    general_tokens_per_word=1.5,
    general_tokens_per_character=0.3,
    unknown_share=0.0,
    byte_share=0.0,
    untrained_share=0.0,
    untrained=(),
    rare=(),
)
LOW = Spectrum(rank90=8, largest_rank90=20, width=128, energy_at=((1, 0.5),))
HIGH = replace(LOW, rank90=17)  # of 128: just above an eighth


def probe(part: Part, loss: float, *, half: float | None = None, **more: Any) -> Probe:
    method = {"full": "full", "prompt": "prompt-tuning", "variant": "dora"}.get(part, "lora")
    rank = None if part in ("full", "prompt") else 16
    fields = {
        "name": f"{part} {rank}",
        "part": part,
        "method": method,
        "rank": rank,
        "targets": ("q_proj",),
        "learning_rate": 1e-3,
        "multiplier": 1.0,
        "parameters": 1000,
        "loss": loss,
        "curve": ((0, 3.0), (25, 2.0), (50, loss if half is None else half), (75, loss)),
        "exact_match": None,
        "general_loss": 1.0,
        "seconds_per_step": 0.1,
        "activation_bytes": 1000,
    } | more
    return Probe(**(fields | {"curve": (*fields["curve"], (100, loss))}))


SEARCHED = (probe("rate", 2.0, multiplier=1 / 3), probe("rate", 2.0, multiplier=3.0))
"""Rates that are worse than 1 on both sides."""


def evidence(*probes: Probe, **more: Any) -> Evidence:
    fields: dict[str, Any] = {
        "base_loss": 3.0,
        "general_loss": 1.0,
        "exact_match": 0.1,
        "vocabulary": WORDS,
        "probes": probes,
        "spectrum": LOW,
        "full_left_out": None,
        "gap_error": 0.001,
    }
    return Evidence(**(fields | more))


def finding(verdict: Verdict, rule: str) -> Finding:
    return next(one for one in verdict.findings if one.rule == rule)


def far(**more: Any) -> Evidence:
    """LoRA 10 % behind full fine-tuning, as it was at half of the budget."""
    return evidence(
        *SEARCHED,
        probe("rate", 1.1, half=1.32),
        probe("full", 1.0, half=1.2),
        **{"spectrum": HIGH, **more},
    )


def test_peft_is_wrong_only_where_all_three_hold() -> None:
    verdict = judge(far())
    assert verdict.kind == "full"
    assert verdict.choice is verdict.full
    assert verdict.gap == pytest.approx(0.1)
    assert "PEFT is the wrong tool here" in verdict.summary
    low = judge(far(spectrum=replace(HIGH, rank90=16)))  # an eighth is not more than an eighth
    assert low.kind == "unclear"
    assert not finding(low, "change is of high rank").holds
    noisy = judge(far(gap_error=0.06))  # 0.1 nats are less than two of those
    assert noisy.kind == "peft"
    assert not finding(noisy, "gap to full").holds


def test_a_gap_that_the_trend_closes_wants_more_steps() -> None:
    closing = evidence(
        probe("rate", 1.1, half=1.56),  # 30 % at half, 10 % at the end: 1.1 % two doublings on
        probe("full", 1.0, half=1.2),
        spectrum=HIGH,
    )
    assert gaps(*closing.probes)[1] == pytest.approx(0.3)
    assert later_gap(*closing.probes) == pytest.approx(0.1 / 9)
    verdict = judge(closing)
    assert verdict.kind == "peft"
    assert "for longer than the probes" in verdict.summary
    growing = (probe("rate", 1.1, half=1.2), probe("full", 1.0, half=1.2))
    assert later_gap(*growing) == pytest.approx(0.1)
    assert judge(evidence(*growing, *SEARCHED, spectrum=HIGH)).kind == "full"


def test_a_verdict_against_peft_wants_its_rate_found() -> None:
    """The best of the rates tried at the edge: others may be better. Full's may be: only worse."""
    lora, full = probe("rate", 1.1, half=1.32), probe("full", 1.0, half=1.2)
    once = judge(evidence(lora, full, spectrum=HIGH))
    assert once.kind == "unclear"
    assert "at the edge" in once.summary
    embeddings = probe("embeddings", 1.08, half=1.3)
    edge = evidence(*SEARCHED, lora, embeddings, full, spectrum=HIGH)
    assert judge(edge).kind == "unclear"
    found = tuple(probe("embeddings", 1.09, multiplier=rate) for rate in (1 / 3, 3.0))
    assert judge(evidence(*edge.probes, *found, spectrum=HIGH)).kind == "full"


@pytest.mark.parametrize(
    ("lora", "said"), [(1.0199, "nothing is lost within the budget"), (1.03, "which is little")]
)
def test_near_full_fine_tuning(lora: float, said: str) -> None:
    verdict = judge(evidence(probe("rate", lora), probe("full", 1.0)))
    assert verdict.kind == "peft"
    assert said in verdict.summary


def test_a_yardstick_whose_rate_is_at_the_edge_is_told() -> None:
    lora, full = probe("rate", 1.0), probe("full", 1.0, multiplier=3.0)
    slow, quick = probe("full", 1.2), probe("full", 1.2, multiplier=9.0)
    assert "it may do better" in judge(evidence(lora, slow, full)).summary
    assert "it may do better" not in judge(evidence(lora, slow, full, quick)).summary


def test_without_a_yardstick_it_says_so() -> None:
    verdict = judge(
        evidence(probe("rate", 1.0), spectrum=None, gap_error=None, full_left_out="no memory")
    )
    assert verdict.kind == "peft"
    assert verdict.gap is None
    assert "no memory" in verdict.summary


@pytest.mark.parametrize(("match", "kind"), [(0.95, "none"), (0.949, "peft"), (None, "peft")])
def test_nothing_is_trained_where_the_base_answers(match: float | None, kind: str) -> None:
    verdict = judge(evidence(probe("rate", 1.0), probe("full", 1.0), exact_match=match))
    assert verdict.kind == kind
    assert (verdict.choice is None) == (kind == "none")


@pytest.mark.parametrize(("loss", "kind"), [(2.98, "none"), (2.96, "peft"), (3.5, "none")])
def test_nothing_is_trained_where_probes_learn_nothing(loss: float, kind: str) -> None:
    assert judge(evidence(probe("rate", loss), probe("full", loss))).kind == kind


def test_the_smallest_rank_that_suffices() -> None:
    low, high = probe("rank", 1.0099, rank=4), probe("rank", 1.0, rank=64)
    verdict = judge(evidence(probe("rate", 1.005), low, high))
    assert verdict.choice is low
    assert judge(evidence(probe("rate", 1.02), replace(low, loss=1.02), high)).choice is high
    top = finding(judge(evidence(probe("rate", 1.02), high)), "rank")
    assert "no higher one was tried" in top.says


def test_a_rank_counts_at_its_best_rate() -> None:
    slow = probe("rate", 2.0, multiplier=1.0)
    quick = probe("rate", 1.0, multiplier=3.0)
    verdict = judge(evidence(slow, quick, probe("full", 1.0)))
    assert verdict.choice is quick
    edge = finding(verdict, "rate of LoRA")
    assert not edge.holds
    assert "at the edge" in edge.says
    inner = judge(evidence(slow, quick, probe("rate", 1.5, multiplier=9.0)))
    assert finding(inner, "rate of LoRA").holds


def test_attention_alone_where_that_is_as_good_and_smaller() -> None:
    wide, narrow = probe("rate", 1.0), probe("targets", 1.005, parameters=400)
    assert judge(evidence(wide, narrow)).choice is narrow
    assert judge(evidence(wide, replace(narrow, loss=1.02))).choice is wide
    small = probe("rank", 1.0, rank=4, parameters=300)
    assert judge(evidence(wide, narrow, small)).choice is small


def test_dora_and_prompt_tuning_where_they_pay() -> None:
    lora = probe("rate", 1.0)
    assert judge(evidence(lora, dora := probe("variant", 0.98))).choice is dora
    assert judge(evidence(lora, probe("variant", 0.995))).choice is lora
    assert judge(evidence(lora, prompt := probe("prompt", 1.005))).choice is prompt
    assert judge(evidence(lora, probe("prompt", 1.2))).choice is lora


def test_tokens_where_they_take_enough_off_loras_loss() -> None:
    lora = probe("rate", 1.0)
    assert judge(evidence(lora, tokens := probe("tokens", 0.97))).choice is tokens
    assert judge(evidence(lora, probe("tokens", 0.985))).choice is lora
    embeddings = probe("embeddings", 0.9)
    assert judge(evidence(lora, tokens, embeddings)).choice is embeddings
    # As good to within 1 %: then the tokens alone.
    near = probe("tokens", 0.905)
    assert judge(evidence(lora, near, embeddings)).choice is near


def test_the_data_findings() -> None:
    words = replace(WORDS, untrained_share=0.001, unknown_share=0.0009, tokens_per_character=0.45)
    verdict = judge(evidence(probe("rate", 1.0), vocabulary=words))
    assert finding(verdict, "never-trained tokens").holds
    assert not finding(verdict, "unknown tokens").holds
    assert finding(verdict, "fertility").holds
    assert finding(verdict, "drift").holds
    unknown = judge(evidence(probe("rate", 1.0), vocabulary=replace(WORDS, untrained_share=None)))
    assert "never-trained tokens" not in {one.rule for one in unknown.findings}


def test_a_base_that_leaves_no_room_is_held_in_4_bits() -> None:
    lora = probe("rate", 1.0, parameters=1000, activation_bytes=4000)  # 20,000 besides the base
    memory = Memory(base_bytes=10_000_000, base_parameters=5_000_000, free_bytes=24_999)
    tight = finding(judge(evidence(lora, memory=memory)), "QLoRA")
    assert tight.holds
    assert "qlora" in tight.says
    for free in (25_000, None):
        roomy = evidence(lora, memory=replace(memory, free_bytes=free))
        assert not finding(judge(roomy), "QLoRA").holds


def test_higher_ranks_where_the_highest_still_gains() -> None:
    low, high = probe("rate", 1.0), probe("rank", 0.98, rank=64)
    assert finding(judge(evidence(low, high)), "higher ranks").holds
    near = evidence(low, replace(high, loss=0.991))
    assert not finding(judge(near), "higher ranks").holds
    assert not finding(judge(evidence(low)), "higher ranks").holds


def test_groups_are_flagged_below_p() -> None:
    group = Difference("base", (("b", 20, 2.0, None), ("a", 20, 1.0, None)), 1.0, 0.049)
    flagged = finding(judge(evidence(probe("rate", 1.0), groups=(group,))), "groups under base")
    assert flagged.holds
    assert "b is served worse than a" in flagged.says
    even = replace(group, p=0.05)
    assert not finding(
        judge(evidence(probe("rate", 1.0), groups=(even,))), "groups under base"
    ).holds


def test_every_finding_says_what_it_rests_on() -> None:
    full = evidence(
        *(probe(part, 1.0) for part in ("rate", "targets", "variant", "tokens", "prompt", "full")),
        groups=(Difference("base", (("b", 9, 2.0, 0.5), ("a", 9, 1.0, 1.0)), 1.0, 0.5),),
    )
    verdict = judge(full)
    assert len(verdict.findings) >= 14
    assert all(
        text
        for one in verdict.findings
        for text in (one.measured, one.threshold, one.says, one.source)
    )
    assert judge(full) == verdict

"""Compares what an engine answered with the reference, and sizes caches so that it hurts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import AutoConfig

from server.engine.engine import Engine
from tests.support.reference import Answer, Reference
from tests.support.traffic import Call, Key, Outcome


def kv_bytes(base: Path, blocks: int, block_size: int) -> int:
    """Bytes of a float32 KV cache of this many blocks for the base in the folder `base`."""
    config = AutoConfig.from_pretrained(base)
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * config.num_hidden_layers * kv_heads * head_dim * 4 * block_size * blocks


def wrong_answers(
    calls: Sequence[Call], outcomes: Mapping[Key, Outcome], reference: Reference
) -> list[str]:
    """One line for each sequence whose tokens or reason are not the reference's; [] if all are.

    An aborted call must have a beginning of the reference's answer.
    """
    lines = []
    for call in calls:
        answer = reference.answer(call.adapter, call.prompt, call.max_tokens, call.ignore_eos)
        for index in range(call.n):
            fault = _fault(call, outcomes[call.id, index], answer)
            if fault is not None:
                lines.append(f"{call.id} ({call.adapter}, {len(call.prompt)} tokens): {fault}")
    return lines


def assert_nothing_held(engine: Engine) -> None:
    """All work done: no sequence, no lease, no KV block in use."""
    engine.check()
    stats = engine.stats()
    assert not engine.has_work()
    held = (stats.running, stats.waiting, stats.slot_leases, stats.kv_blocks_used)
    assert held == (0, 0, 0, 0), stats


def _fault(call: Call, outcome: Outcome, answer: Answer) -> str | None:
    got, want = tuple(outcome.tokens), answer.tokens
    if outcome.reason == "abort" and call.abort_after is not None:
        want = want[: len(got)]
    else:
        reason = "stop" if answer.stopped else "length"
        if got == want and outcome.reason != reason:
            return f"ended by {outcome.reason}, not {reason}"
    if got == want:
        return None
    at = next((i for i, (a, b) in enumerate(zip(got, want, strict=False)) if a != b), len(got))
    if at >= len(want):
        return f"{len(got)} tokens, not {len(want)}"
    return f"token {at} is {got[at : at + 1]}, not {want[at]} (margin {answer.margins[at]:.1e})"

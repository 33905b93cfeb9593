"""The tiny bases can fail: without what a family adds to attention, they answer otherwise."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.families import FAMILIES, VOCAB, make_base
from tests.support.reference import Reference
from tests.support.traffic import random_prompts

FULL = ["full_attention"] * 3


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mistral", {"sliding_window": None}),
        ("mixtral", {"sliding_window": None}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"layer_types": FULL}),
        ("gemma3", {"layer_types": FULL}),
        ("gpt_oss", {"layer_types": FULL}),
    ],
)
def test_leaving_it_out_changes_answers(name: str, change: dict[str, Any], tmp_path: Path):
    family = next(family for family in FAMILIES if family.name == name)
    base = make_base(family, tmp_path / "base")
    other = Path(shutil.copytree(base, tmp_path / "other"))
    config = json.loads((base / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | change))
    prompt = random_prompts(1, VOCAB, (50, 60), seed=5)[0]
    answers = [Reference(folder, {}).answer(None, prompt, 8) for folder in (base, other)]
    assert answers[0].tokens != answers[1].tokens

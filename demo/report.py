"""Writes RESULTS.md: the matrix of held-out scores, sizes, and one example per adapter.

Here: the report's words and tables. Not here: how the scores come about.
"""

import re
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from demo import EXAMPLES
from demo.evaluate import Scores, answer
from demo.tasks import TASKS

_INTRODUCTION = """# The demo's results

Written by `python -m demo.make`; do not edit. Exact match, to the letter, of greedy answers in
float32 by transformers and peft, on {count} held-out examples per task. Held-out examples use
sentence templates that neither the base nor any adapter was trained on. In every task but
`intent` (ten labels) and `clock` (288 times) the answers were held out too: none was ever an
answer in training. The words that fill the blanks come from closed lists and are shared. The
whole run is logged in train.log.

## Each model on each task

Rows are models, columns are tasks; every adapter belongs to the task of its name.
"""


def write_report(
    path: Path,
    root: Path,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    scores: Scores,
    count: int,
    seconds: dict[str, int],
) -> None:
    """Writes the report on the artefacts under `root` to `path`.

    `count` is the held-out examples per task, `seconds` how long each stage took, by its name.
    """
    parts = [
        _INTRODUCTION.format(count=count),
        _matrix(scores),
        "\n## Sizes, and the time that each took\n",
        _shapes(root, model, seconds),
        "\n## Examples\n",
        _examples(model, tokenizer),
    ]
    path.write_text("\n".join(parts) + "\n")


def stage_seconds(log: Path) -> dict[str, int]:
    """How long each stage took, as make.py logged it."""
    return {name: int(s) for name, s in re.findall(r" (\S+): (\d+) s$", log.read_text(), re.M)}


def _time(seconds: dict[str, int], stage: str) -> str:
    return str(seconds.get(stage, ""))


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _matrix(scores: Scores) -> str:
    tasks = list(next(iter(scores.values())))
    rows = [[name, *(f"{row[task]:.3f}" for task in tasks)] for name, row in scores.items()]
    return _table(["", *tasks], rows)


def _shapes(root: Path, model: PeftModel, seconds: dict[str, int]) -> str:
    size = (root / "base" / "model.safetensors").stat().st_size
    rows = [["base", "", "", "", f"{size:,}", _time(seconds, "base"), "plain prose"]]
    for task in TASKS:
        config = model.peft_config[task.name]
        size = (root / "adapters" / task.name / "adapter_model.safetensors").stat().st_size
        targets = ", ".join(sorted(config.target_modules))
        row = [task.name, str(config.r), str(config.lora_alpha), targets, f"{size:,}"]
        rows.append([*row, _time(seconds, f"adapter-{task.name}"), task.summary])
    return _table(["", "rank", "alpha", "target modules", "bytes", "seconds", "what it does"], rows)


def _examples(model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> str:
    rows = []
    for name, message in EXAMPLES.items():
        (adapted,) = answer(model, tokenizer, name, [message])
        (plain,) = answer(model, tokenizer, "base", [message])
        rows.append([name, message, f"`{adapted}`", plain])
    return _table(["adapter", "message", "the adapter's answer", "the base's answer"], rows)

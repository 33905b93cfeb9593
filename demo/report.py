"""Writes RESULTS.md: the matrix of held-out scores, sizes, and one example per adapter.

Here: the report's words and tables. Not here: how the scores come about.
"""

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
answer in training. The words that fill the blanks come from closed lists and are shared.

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
) -> None:
    """Writes the report on the artefacts under `root` to `path`."""
    parts = [
        _INTRODUCTION.format(count=count),
        _matrix(scores),
        "\n## The adapters\n",
        _shapes(root, model),
        "\n## Examples\n",
        _examples(model, tokenizer),
    ]
    path.write_text("\n".join(parts) + "\n")


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _matrix(scores: Scores) -> str:
    tasks = list(next(iter(scores.values())))
    rows = [[name, *(f"{row[task]:.3f}" for task in tasks)] for name, row in scores.items()]
    return _table(["", *tasks], rows)


def _shapes(root: Path, model: PeftModel) -> str:
    size = (root / "base" / "model.safetensors").stat().st_size
    rows = [["base", "", "", "", f"{size:,}", "plain prose"]]
    for task in TASKS:
        config = model.peft_config[task.name]
        size = (root / "adapters" / task.name / "adapter_model.safetensors").stat().st_size
        targets = ", ".join(sorted(config.target_modules))
        row = [task.name, str(config.r), str(config.lora_alpha), targets, f"{size:,}"]
        rows.append([*row, task.summary])
    return _table(["", "rank", "alpha", "target modules", "bytes", "what it does"], rows)


def _examples(model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> str:
    rows = []
    for name, message in EXAMPLES.items():
        (adapted,) = answer(model, tokenizer, name, [message])
        (plain,) = answer(model, tokenizer, "base", [message])
        rows.append([name, message, f"`{adapted}`", plain])
    return _table(["adapter", "message", "the adapter's answer", "the base's answer"], rows)

"""Evaluates the base and every adapter on every task's held-out examples, by exact match.

Here: greedy generation in float32 with transformers and peft, the matrix of scores.
Not here: training, the report's wording.
"""

from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from demo.adapters import prompt_ids
from demo.tasks import TASKS, Filled

BASE = "base"  # the matrix's row of the base without any adapter
MAX_NEW_TOKENS = 56  # the longest answer is 47 tokens with its end
BATCH = 100

Scores = dict[str, dict[str, float]]  # model -> task -> share of answers right to the letter


def heldout_examples(count: int, seed: int) -> dict[str, list[Filled]]:
    """For each task, `count` held-out examples, no two with the same prompt."""
    examples = {}
    for task in TASKS:
        rng, unique = Random(f"heldout {seed} {task.name}"), {}
        while len(unique) < count:
            filled = task.heldout(rng)
            unique[filled.prompt] = filled
        examples[task.name] = list(unique.values())
    return examples


def load_artefacts(root: Path) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """The base in float32 with all its adapters loaded by name, and the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(root / "base", local_files_only=True)
    base = AutoModelForCausalLM.from_pretrained(
        root / "base", dtype=torch.float32, local_files_only=True
    )
    folders = sorted(path for path in (root / "adapters").iterdir() if path.is_dir())
    model = PeftModel.from_pretrained(base, folders[0], adapter_name=folders[0].name)
    for folder in folders[1:]:
        model.load_adapter(folder, adapter_name=folder.name)
    return model.eval(), tokenizer


def evaluate(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: dict[str, list[Filled]],
    progress: Callable[[], None] = lambda: None,
) -> Scores:
    """The whole matrix; `progress` is called after each of its cells."""
    scores: Scores = {}
    for name in (BASE, *examples):
        scores[name] = {}
        for task, filled in examples.items():
            answers = answer(model, tokenizer, name, [example.prompt for example in filled])
            right = sum(a == f.answer for a, f in zip(answers, filled, strict=True))
            scores[name][task] = right / len(filled)
            progress()
    return scores


def answer(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, name: str, prompts: list[str]
) -> list[str]:
    """What the named adapter (or the base) writes for each prompt, greedily."""
    if name == BASE:
        with model.disable_adapter():
            return _generate(model, tokenizer, prompts)
    model.set_adapter(name)
    return _generate(model, tokenizer, prompts)


def _generate(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str]
) -> list[str]:
    answers = []
    for start in range(0, len(prompts), BATCH):
        rows = [prompt_ids(tokenizer, prompt) for prompt in prompts[start : start + BATCH]]
        batch = tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
            )  # [prompts, longest prompt + new tokens]
        new_tokens = output[:, batch["input_ids"].shape[1] :]
        answers += tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
    return answers

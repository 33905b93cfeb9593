"""A tiny base, batches to train on, and a few steps of training, for the methods' tests.

As a script: trains every method, and prints each one's digest of what was saved.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.support.families import FAMILIES, Family, spread_weights
from training.methods.fields import TAKES, default_targets
from training.methods.optimizer import optimizer_groups
from training.methods.trainable import Trainable, after_step, attach, save
from training.plan import LEARNING_RATE, AdapterPlan

METHODS = tuple(method for method in TAKES if method not in ("qlora", "full"))
"""Those that make an adapter here; qlora needs a base in 4 bits."""
FAMILY = {family.name: family for family in FAMILIES}
STEPS = 6
SEED = 11
BASE_NAME = "tiny"


def make_base(
    family: Family = FAMILY["llama"], *, dtype: torch.dtype = torch.float32, **config: object
) -> PreTrainedModel:
    """The same weights every time."""
    shape = CONFIG_MAPPING[family.model_type](**dict(family.config) | config)
    for dropout in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):  # GPT-2's, which hide a loss's fall
        setattr(shape, dropout, 0.0)
    model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    spread_weights(model, seed=3)
    for parameter in model.parameters():  # not its buffers: from_pretrained leaves them float32
        parameter.data = parameter.data.to(dtype)
    return model.eval()


def plan_of(method: str, family: Family = FAMILY["llama"], **more: object) -> AdapterPlan:
    fields = {
        "method": method,
        "rank": 4,
        "alpha": 4.0 if method == "pissa" else 8.0,
        "dropout": 0.0,
        "targets": tuple(sorted(default_targets(method, family.linears))),
        "modules_to_save": (),
        "trainable_token_ids": (),
        "virtual_tokens": 5,
    }
    return AdapterPlan(**fields | more)


@cache
def rows() -> tuple[dict[str, Tensor], ...]:
    """Three batches, rows of unlike length, the first third of each unlearned."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for number in range(3):
        ids = torch.randint(10, 199, (4, 17 + number), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 14:] = 0
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :6] = -100
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return tuple(made)


def batches() -> Iterator[dict[str, Tensor]]:
    return iter(rows())


def attached(method: str, base: PreTrainedModel | None = None, **plan: object) -> Trainable:
    return attach(
        make_base() if base is None else base,
        plan_of(method, **plan),
        seed=SEED,
        total_steps=STEPS,
        batches=batches,
    )


def train(trainable: Trainable, *, first: int = 0, last: int = STEPS) -> list[float]:
    """The losses of the steps [first, last), all of the same batch."""
    model = trainable.model.train()
    rate = 4 * LEARNING_RATE[trainable.plan.method]
    groups = optimizer_groups(model, trainable.plan, learning_rate=rate, weight_decay=0.0)
    optimizer = torch.optim.AdamW(groups)
    losses = []
    for step in range(first, last):
        loss = model(**rows()[0]).loss
        loss.backward()
        optimizer.step()
        after_step(trainable, step)
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    """Of the text's own places: [examples, tokens, vocabulary]."""
    batch = rows()[1]
    found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return found[:, -batch["input_ids"].shape[1] :]


def saved(trainable: Trainable, folder: Path) -> Path:
    save(trainable, folder, base_name=BASE_NAME)
    return folder


def digest(folder: Path) -> str:
    """Of all files, by name."""
    parts = [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def trained_digest(method: str) -> str:
    trainable = attached(method)
    train(trainable)
    with tempfile.TemporaryDirectory() as folder:
        return digest(saved(trainable, Path(folder)))


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    print(json.dumps({method: trained_digest(method) for method in METHODS}))

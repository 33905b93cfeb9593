"""EVA: A begins with the directions in which a module's inputs vary most, on the training data.

Here: PEFT's incremental SVD, kept from running for ever. Not here: the low-rank update itself.

Source: "Parameter Efficient Fine-tuning via Explained Variance Adaptation", arXiv:2410.07170: ranks
go where variance is (rho = 2: up to twice the rank in one module, the same number in all),
components count as found at a cosine of 0.99 between batches. B is zero and the base unchanged,
so what is saved is an ordinary LoRA.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from peft import EvaConfig, PeftModel, get_eva_state_dict, initialize_lora_eva_weights
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from adapters_store.errors import InvalidRequest
from training.methods.family import Batches, Family, Files, Start
from training.methods.lora import Update, detached, lora_config, low_rank_layers, plain_lora
from training.methods.modules import check_rank, targets
from training.methods.peft_model import ADAPTER, unwrap, wrap
from training.plan import AdapterPlan

RHO = 2.0
SIMILARITY = 0.99
MOST_BATCHES = 32
"""After so many, the components are taken as they are: few data may never settle."""
FILL = {"input_ids": 0, "attention_mask": 0, "labels": -100}


class _SizedBatches:
    """Training batches, over and over, each with enough learned tokens for an SVD.

    Iterating ends nothing: EVA stops when all components have settled, and `tolerance`, the
    similarity that it asks for, is dropped below any after MOST_BATCHES.
    """

    def __init__(self, batches: Batches, tokens: int, tolerance: Tensor) -> None:
        self._batches = batches
        self._tokens = tokens
        self._tolerance = tolerance

    def __len__(self) -> int:
        return MOST_BATCHES

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        given = 0
        while True:
            for batch in self._joined():
                given += 1
                if given > MOST_BATCHES:
                    self._tolerance.fill_(-1.0)
                yield batch

    def _joined(self) -> Iterator[dict[str, Tensor]]:
        """Raises InvalidRequest if all batches together have too few tokens."""
        waiting: list[Mapping[str, Tensor]] = []
        found = 0
        enough = False
        for batch in self._batches():
            waiting.append(batch)
            found += int(_learned(batch).sum())
            if found >= self._tokens:
                yield _join(waiting)
                waiting, found, enough = [], 0, True
        if not enough:
            raise InvalidRequest(
                f"adapterd.peft.rank: eva needs {self._tokens} learned tokens at this rank, and "
                f"the training file has {found}; ask for a lower rank, or use lora",
                param="adapterd.peft.rank",
            )


def _learned(batch: Mapping[str, Tensor]) -> Tensor:
    return batch["attention_mask"].bool() & (batch["labels"] != FILL["labels"])


def _join(batches: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One batch of all their rows, [sum of examples, longest]."""
    longest = max(batch["input_ids"].shape[1] for batch in batches)
    return {
        name: torch.cat(
            [pad(one[name], (0, longest - one[name].shape[1]), value=fill) for one in batches]
        )
        for name, fill in FILL.items()
    }


def _attach(base: PreTrainedModel, plan: AdapterPlan, start: Start) -> PeftModel:
    check_rank(base, plan, needed=plan.rank)
    narrowest = min(min(one.weight.shape) for one in targets(base, plan).values())
    rho = min(RHO, narrowest / plan.rank)
    tolerance = torch.tensor(SIMILARITY)
    batches = _SizedBatches(start.training_batches(plan.method), round(plan.rank * rho), tolerance)
    options = EvaConfig(rho=rho, tau=cast(float, tolerance))
    # Of the bare base: in a PeftModel, EVA takes trained tokens' embedding for a target.
    asked = lora_config(base, plan, init_lora_weights="eva", eva_config=options)
    components = get_eva_state_dict(base, batches, asked, show_progress_bar=False)
    model = wrap(base, lora_config(base, plan))
    # Only while they are put in; wrapped with such a config, PEFT's layers would be on "meta".
    config: Any = model.peft_config[ADAPTER]
    config.init_lora_weights, config.eva_config = "eva", options
    named = {f"base_model.model.{path}": one for path, one in components.items()}
    initialize_lora_eva_weights(model, eva_state_dict=named)
    config.init_lora_weights, config.eva_config = True, None
    for _, layer in low_rank_layers(model):
        for factor in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]):
            factor.weight.data = factor.weight.data.float().contiguous()
    return model


def _export(model: nn.Module, plan: AdapterPlan) -> Files:
    updates = {
        path: Update(
            detached(layer.lora_A[ADAPTER].weight),
            detached(layer.lora_B[ADAPTER].weight),
            layer.scaling[ADAPTER],
        )
        for path, layer in low_rank_layers(model)
    }
    return plain_lora(model, updates)


EVA = Family(_attach, _export, unwrap)

"""What a job will do, in numbers: every "auto" and None of its spec settled.

Here: Plan, AdapterPlan, TeacherPlan, settle. Not here: doing it.

Where the defaults come from: learning rates from "LoRA Without Regret" (Schulman et al. 2025, the
fit of the best rate to a Llama's width; a full fine-tune's is a tenth), alpha = 2 r as in PEFT's
and QLoRA's recipes (for rsLoRA, whose scale is alpha / sqrt(r), 16), all linear modules as in QLoRA
(arXiv:2305.14314); other methods' as in their papers (methods/).
"""

import math
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from adapters_store.errors import InvalidRequest
from training.methods.fields import (
    check_options,
    default_dropout,
    default_rank,
    default_targets,
    named_targets,
)
from training.spec import DpoHyperparameters, JobRequest, Peft, PeftMethod, Scheduler, Task, Teacher

STEPS_WANTED = 300
"""Few examples are seen more often, until about so many steps are made."""

LEARNING_RATE = {  # of a base 2,000 wide; the power is over 2,000 / width
    "lora": 5e-4, "rslora": 5e-4, "dora": 5e-4, "pissa": 5e-4, "eva": 5e-4, "lora-ga": 5e-4,
    "lora+": 2.5e-4, "qlora": 5e-4, "adalora": 1e-3, "ia3": 5e-3, "prompt-tuning": 3e-2,
    "prefix-tuning": 1e-2, "p-tuning": 3e-2, "bottleneck": 5e-4, "full": 5e-5,
}  # fmt: skip
WIDTH_POWER = 0.775
DPO_SHARE = 0.1
"""Of the supervised rate: preferences are learned with less."""

VIRTUAL_TOKENS = {"prompt-tuning": 16, "prefix-tuning": 16, "p-tuning": 16}


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """The adapter's kind and shape."""

    method: PeftMethod
    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]  # leaf names of linear modules
    modules_to_save: tuple[str, ...]
    trainable_token_ids: tuple[int, ...]
    virtual_tokens: int
    task: Task = "generation"


@dataclass(frozen=True, slots=True)
class TeacherPlan:
    """Who teaches, by one of two names, and how much is made of it."""

    job: str | None
    name: str | None
    weight: float
    temperature: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a training run depends on besides its data and base."""

    adapter: AdapterPlan
    teacher: TeacherPlan | None
    preference: bool
    beta: float  # of DPO
    seed: int
    epochs: int
    batch_size: int  # examples per optimizer step
    accumulation: int  # parts that a batch is worked on in; divides batch_size
    steps: int  # optimizer steps in all
    learning_rate: float
    warmup_ratio: float
    scheduler: Scheduler
    weight_decay: float
    max_grad_norm: float
    gradient_checkpointing: bool
    packing: bool
    group_by_length: bool  # rows of like length share a batch
    max_tokens: int
    eval_every: int  # steps; 0: never while training
    checkpoint_every: int  # steps
    patience: int | None  # evaluations


@dataclass(frozen=True, slots=True)
class BaseShape:
    """What the defaults depend on."""

    width: int  # of the hidden states
    max_tokens: int
    linears: tuple[str, ...]  # leaf names of linear modules but for the head


def settle(
    request: JobRequest,
    *,
    seed: int,
    rows: int,
    base: BaseShape,
    tokenizer: PreTrainedTokenizerBase,
) -> Plan:
    """`rows`: sequences to train on. Raises InvalidRequest, naming the field."""
    options, hyper = request.adapterd, request.hyper
    preference = request.method.type == "dpo"
    check_options(options, preference=preference)
    adapter = replace(_adapter(options.peft, base, tokenizer), task=options.task)
    batch_size = _batch_size(rows) if hyper.batch_size == "auto" else hyper.batch_size
    accumulation = options.gradient_accumulation_steps
    if batch_size % accumulation:
        raise InvalidRequest(
            f"adapterd.gradient_accumulation_steps {accumulation} does not divide the batch size "
            f"{batch_size}",
            param="adapterd.gradient_accumulation_steps",
        )
    per_epoch = math.ceil(rows / batch_size)
    epochs = hyper.n_epochs
    if epochs == "auto":
        epochs = min(25, max(3, math.ceil(STEPS_WANTED / per_epoch)))
        if options.max_steps is not None:
            epochs = math.ceil(options.max_steps / per_epoch)
    steps = min(per_epoch * epochs, options.max_steps or per_epoch * epochs)
    beta = hyper.beta if isinstance(hyper, DpoHyperparameters) else "auto"
    return Plan(
        adapter=adapter,
        teacher=_teacher(options.teacher),
        preference=preference,
        beta=0.1 if beta == "auto" else beta,
        seed=seed,
        epochs=epochs,
        batch_size=batch_size,
        accumulation=accumulation,
        steps=steps,
        learning_rate=_rate(request, base, preference=preference),
        warmup_ratio=options.warmup_ratio,
        scheduler=options.scheduler,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        gradient_checkpointing=options.gradient_checkpointing,
        packing=options.packing,
        group_by_length=options.group_by_length and not options.packing,
        max_tokens=min(options.max_tokens or base.max_tokens, base.max_tokens),
        eval_every=math.ceil(steps / options.evals) if options.evals else 0,
        checkpoint_every=options.checkpoint_every or max(10, math.ceil(steps / 20)),
        patience=options.early_stopping_patience,
    )


def _teacher(asked: Teacher | None) -> TeacherPlan | None:
    if asked is None:
        return None
    return TeacherPlan(asked.job, asked.name, asked.weight, asked.temperature)


def _adapter(peft: Peft, base: BaseShape, tokenizer: PreTrainedTokenizerBase) -> AdapterPlan:
    if peft.targets is None:
        targets = default_targets(peft.method, base.linears)
    else:
        targets = named_targets(peft.targets, base.linears)
    rank = peft.rank or default_rank(peft.method, base.width)
    alpha = peft.alpha
    if alpha is None:
        alpha = 16.0 if peft.method == "rslora" else 2.0 * rank
    if peft.method == "pissa" and peft.alpha is None:
        alpha = float(rank)  # its two matrices hold the base's own singular values: no scale
    return AdapterPlan(
        method=peft.method,
        rank=rank,
        alpha=alpha,
        dropout=default_dropout(peft.method, base.width) if peft.dropout is None else peft.dropout,
        targets=tuple(sorted(targets)),
        modules_to_save=peft.modules_to_save,
        trainable_token_ids=tuple(_token(text, tokenizer) for text in peft.trainable_tokens),
        virtual_tokens=peft.virtual_tokens or VIRTUAL_TOKENS.get(peft.method, 0),
    )


def _token(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise InvalidRequest(
            f"adapterd.peft.trainable_tokens: {text!r} is {len(ids)} tokens, not one",
            param="adapterd.peft.trainable_tokens",
        )
    return ids[0]


def _batch_size(rows: int) -> int:
    """A power of two, so that an epoch has some 100 steps; from 4 to 32."""
    return min(32, max(4, 2 ** round(math.log2(max(1, rows / 100)))))


def _rate(request: JobRequest, base: BaseShape, *, preference: bool) -> float:
    multiplier = request.hyper.learning_rate_multiplier
    rate = request.adapterd.learning_rate
    if rate is None:
        rate = LEARNING_RATE[request.adapterd.peft.method] * (2000 / base.width) ** WIDTH_POWER
        rate *= DPO_SHARE if preference else 1.0
    return rate * (1.0 if multiplier == "auto" else multiplier)

"""What a fine-tuning job is asked to do: OpenAI's fields, and ours under `adapterd`.

Here: JobRequest and its parts, their bounds. Not here: what "auto" comes to for some data and base
(plan.py), HTTP.

Fields and bounds: OpenAI's reference of POST /v1/fine_tuning/jobs.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from adapters_store.errors import InvalidRequest, UnsupportedParameter
from adapters_store.strict_json import shorten

Auto = Annotated[Literal["auto"], Tag("~auto")]  # a "~" keeps a tag out of the field's path
NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"

PeftMethod = Literal[
    "lora", "rslora", "dora", "lora+", "pissa", "eva", "lora-ga", "qlora", "adalora", "ia3",
    "prompt-tuning", "prefix-tuning", "p-tuning", "bottleneck", "full",
]  # fmt: skip
Scheduler = Literal["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt"]
Task = Literal["generation", "classification"]
Metric = Literal["eval_loss", "exact_match", "f1"]


def _auto_or_number(value: Any) -> str:
    return "~auto" if isinstance(value, str) else "~number"


_OR_AUTO = Discriminator(_auto_or_number)
Epochs = Annotated[Auto | Annotated[int, Field(ge=1, le=100), Tag("~number")], _OR_AUTO]
BatchSize = Annotated[Auto | Annotated[int, Field(ge=1, le=1024), Tag("~number")], _OR_AUTO]
Multiplier = Annotated[Auto | Annotated[float, Field(gt=0, le=1000), Tag("~number")], _OR_AUTO]
Beta = Annotated[Auto | Annotated[float, Field(gt=0, le=2), Tag("~number")], _OR_AUTO]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Hyperparameters(_Part):
    """OpenAI's; a multiplier of 1 is the rate that suits the base and the method."""

    n_epochs: Epochs = "auto"
    batch_size: BatchSize = "auto"
    learning_rate_multiplier: Multiplier = "auto"


class DpoHyperparameters(Hyperparameters):
    """`beta`: how much the policy is kept near the base (DPO, arXiv:2305.18290)."""

    beta: Beta = "auto"


class Supervised(_Part):
    hyperparameters: Hyperparameters = Hyperparameters()


class Dpo(_Part):
    hyperparameters: DpoHyperparameters = DpoHyperparameters()


class Method(_Part):
    """How it is trained; the field that is named as `type` may say more."""

    type: Literal["supervised", "dpo"] = "supervised"
    supervised: Supervised | None = None
    dpo: Dpo | None = None

    @model_validator(mode="before")
    @classmethod
    def _known_but_not_here(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("type") == "reinforcement":
            raise UnsupportedParameter(
                "method.type: 'reinforcement' is not supported by this server; use 'supervised', "
                "or 'dpo' for preferences",
                param="method.type",
            )
        return value

    @model_validator(mode="after")
    def _only_its_own(self) -> "Method":
        other = "dpo" if self.type == "supervised" else "supervised"
        if getattr(self, other) is not None:
            raise ValueError(f"{other!r} does not go with the type {self.type!r}; remove it")
        return self

    @property
    def hyperparameters(self) -> Hyperparameters:
        """Of the method that counts."""
        own = self.supervised if self.type == "supervised" else self.dpo
        if own is None:
            return Hyperparameters() if self.type == "supervised" else DpoHyperparameters()
        return own.hyperparameters


Leaf = Annotated[str, Field(min_length=1, max_length=255)]
Leaves = Annotated[tuple[Leaf, ...], Field(strict=False, max_length=256)]  # JSON has arrays


class Peft(_Part):
    """The kind of adapter, and its shape. None: what suits the method, the base and the data."""

    method: PeftMethod = "lora"
    rank: Annotated[int, Field(ge=1, le=1024)] | None = None
    alpha: Annotated[float, Field(gt=0, le=8192)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    targets: Annotated[Leaves, Field(min_length=1)] | None = None
    """Leaf names of linear modules ("q_proj"), or "attention" for those of it; None: all."""
    modules_to_save: Leaves = ()
    """Leaf names of modules that are trained whole ("embed_tokens")."""
    trainable_tokens: Leaves = ()
    """Tokens whose embeddings are trained, each one token of the base's tokenizer."""
    virtual_tokens: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Of prompt tuning and its kin."""


class Gate(_Part):
    """When the name moves to the new version. All that is said must hold.

    `max`, `min`: bounds of the metric on held-out examples. `better_than`: "current" is the version
    that the name means when it is published (no such version: passed), "base" the base.
    `max_forgetting`: bound of the growth of the loss on general text, nats a token.
    """

    metric: Metric = "eval_loss"
    max: float | None = None
    min: float | None = None
    better_than: Literal["current", "base"] | None = None
    max_forgetting: Annotated[float, Field(ge=0)] | None = None

    @property
    def lower_is_better(self) -> bool:
        return self.metric == "eval_loss"


class Teacher(_Part):
    """Whose view of each next token is learned beside the examples' (arXiv:1503.02531): a job's
    that has succeeded, or a larger model's that the worker was started with."""

    job: Annotated[str, Field(pattern=r"^ftjob-[0-9a-f]{24}$")] | None = None
    name: Annotated[str, Field(pattern=NAME)] | None = None
    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The teacher's share of the loss; the rest is the examples'."""
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Both models' logits are divided by it: more, and what is unlikely counts for more."""

    @model_validator(mode="after")
    def _one_of_two(self) -> "Teacher":
        if (self.job is None) == (self.name is None):
            raise ValueError("say whose: 'job', or 'name', and not both")
        return self


class Options(_Part):
    """What OpenAI's fields have no place for. None: chosen by the base and the data."""

    name: Annotated[str, Field(pattern=NAME)] | None = None
    """The adapter whose next version comes of this; None: a name of its own, from `suffix`."""
    task: Task = "generation"
    """ "classification": the training file's different answers are classes, and a head on the base
    learns to tell them apart, with the adapter."""
    publish: bool = True
    """False: the adapter becomes a result file of the job, and no version."""
    peft: Peft = Peft()
    teacher: Teacher | None = None
    """None: the examples alone are learned."""
    gate: Gate | None = None
    """None: the name moves to the new version."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps, however many epochs that is; where n_epochs is said too, at most."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.05
    scheduler: Scheduler = "linear"
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=1024)] = 1
    """A batch of `batch_size` is worked on in so many parts."""
    gradient_checkpointing: bool = False
    packing: bool = False
    """Several examples in one row, none seeing another."""
    group_by_length: bool = True
    """Rows of like length share a batch, so that little of it is padding."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the frozen base while training; what is trained is always float32."""
    max_tokens: Annotated[int, Field(ge=8)] | None = None
    """Of one example; a longer one is a fault. None: what the base takes."""
    holdout: Annotated[float, Field(ge=0, lt=0.5)] = 0.05
    """Share of the training file that is kept to evaluate, where there is no validation file."""
    eval_examples: Annotated[int, Field(ge=0, le=10_000)] = 200
    """Held-out examples that are answered, for exact match and F1; at most."""
    general_file: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """Examples of what the base should not forget; None: text that the base itself makes up."""
    evals: Annotated[int, Field(ge=0, le=100)] = 5
    """How often the held-out loss is taken while training."""
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = None
    """Ends after so many evaluations without a better loss; the best weights are kept."""
    checkpoint_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between checkpoints."""


class JobRequest(_Part):
    """The body of POST /v1/fine_tuning/jobs.

    Besides pydantic's, its making raises UnsupportedParameter and InvalidRequest themselves.
    """

    model: Annotated[str, Field(min_length=1, max_length=256)]
    training_file: Annotated[str, Field(min_length=1, max_length=63)]
    validation_file: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    method: Method = Method()
    hyperparameters: Hyperparameters | None = None  # OpenAI's older place for them
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    integrations: None = None
    adapterd: Options = Options()

    @model_validator(mode="before")
    @classmethod
    def _explicit_nulls_are_defaults(cls, value: Any) -> Any:
        """OpenAI's clients may send null for what they leave open."""
        if not isinstance(value, dict):
            return value
        return {key: one for key, one in value.items() if one is not None or key == "model"}

    @field_validator("integrations", mode="before")
    @classmethod
    def _no_integrations(cls, value: Any) -> None:
        if value is None or value == []:
            return
        listed = value if isinstance(value, list) else []
        kinds = [one.get("type") for one in listed if isinstance(one, dict)]
        named = ", ".join(shorten(str(kind)) for kind in kinds[:4]) or "what is asked"
        raise UnsupportedParameter(
            f"integrations: {named} is not supported by this server; leave it out: the job's "
            "events carry its metrics",
            param="integrations",
        )

    @field_validator("metadata")
    @classmethod
    def _metadata_is_small(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        for key, one in (value or {}).items():
            if len(key) > 64 or len(one) > 512:
                raise ValueError("keys have at most 64 characters, values 512")
        return value

    @model_validator(mode="after")
    def _hyperparameters_in_one_place(self) -> "JobRequest":
        older = self.hyperparameters
        if older not in (None, Hyperparameters()) and self.method != Method():
            raise InvalidRequest(
                "hyperparameters: method says how it is trained; move them to "
                f"method.{self.method.type}.hyperparameters",
                param="hyperparameters",
            )
        return self

    @model_validator(mode="after")
    def _teachers_say_tokens(self) -> "JobRequest":
        """What a teacher is good for: next tokens, one example a row."""
        if self.adapterd.teacher is None:
            return self
        if self.method.type == "dpo":
            raise InvalidRequest(
                "adapterd.teacher: preferences are learned without one; leave it out, or use the "
                "method 'supervised'",
                param="adapterd.teacher",
            )
        if self.adapterd.packing:
            raise InvalidRequest(
                "adapterd.packing: a teacher would see a row's examples as one text; leave one of "
                "them out",
                param="adapterd.packing",
            )
        return self

    @model_validator(mode="after")
    def _classes_are_told_apart_alone(self) -> "JobRequest":
        """By examples of one text and one class: nothing is written, and no base has the head."""
        if self.adapterd.task != "classification":
            return self
        gate = self.adapterd.gate or Gate()
        for field, asked in (
            ("method.type", self.method.type == "dpo"),
            ("adapterd.packing", self.adapterd.packing),
            ("adapterd.teacher", self.adapterd.teacher is not None),
            ("adapterd.general_file", self.adapterd.general_file is not None),
            ("adapterd.gate.better_than", gate.better_than is not None),
            ("adapterd.gate.max_forgetting", gate.max_forgetting is not None),
        ):
            if asked:
                raise InvalidRequest(
                    f"{field}: does not go with the task 'classification'; leave one of them out",
                    param=field,
                )
        return self

    @property
    def hyper(self) -> Hyperparameters:
        """The method's, or the older field's where only that says something."""
        if self.hyperparameters is not None and self.method == Method():
            return self.hyperparameters
        return self.method.hyperparameters

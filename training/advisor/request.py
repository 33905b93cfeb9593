"""What an advice is asked for: the body of POST /v1/fine_tuning/advise, and a job's spec.

Here: AdviceRequest, Probing. Not here: measuring, HTTP.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

ADVISE = "advise"
"""`kind` in the spec of a job that gives advice; other jobs' specs have no such field."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Probing(_Part):
    """How much is spent on finding out."""

    probe_steps: Annotated[int, Field(ge=4, le=5000)] = 120
    """Optimizer steps of each probe; all see the same batches."""
    max_examples: Annotated[int, Field(ge=32, le=100_000)] = 4000
    """Examples that are drawn from the file, the held-out ones among them."""
    held_out: Annotated[int, Field(ge=4, le=2000)] = 200
    """Of those, so many at most are never trained on; all probes are judged by them."""
    answered: Annotated[int, Field(ge=0, le=1000)] = 40
    """Held-out examples that are answered, for exact match, where answers are short."""
    batch_size: Annotated[int, Field(ge=1, le=1024)] | None = None
    """None: as a job on this file would have it."""
    max_tokens: Annotated[int, Field(ge=8)] | None = None
    """Of one example; a longer one is a fault. None: what the base takes."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    full: bool = True
    """Whether full fine-tuning is probed, where memory allows."""


class AdviceRequest(_Part):
    """The body; `kind` is the spec's own, and may be left out."""

    kind: Literal["advise"] = ADVISE
    model: Annotated[str, Field(min_length=1, max_length=256)]
    training_file: Annotated[str, Field(min_length=1, max_length=63)]
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
            Field(max_length=16),
        ]
        | None
    ) = None
    adapterd: Probing = Probing()

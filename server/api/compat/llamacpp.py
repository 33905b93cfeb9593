"""llama.cpp's server: /completion, and adapters by number at /lora-adapters.

Here: routes, the body, CompletionFormat. Not here: the `lora` field, which llama.cpp takes on
OpenAI's routes too (schemas.py).
"""

import asyncio
from collections.abc import Sequence
from typing import Annotated, ClassVar

from fastapi import APIRouter, Request
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from adapters_store.errors import UnsupportedParameter
from server.api.bodies import AT, UNSUPPORTED, read_json, read_list
from server.api.choice import Delta
from server.api.generation import Generation, Usage
from server.api.openai import every_adapter
from server.api.openai_format import Answer, Json
from server.api.schemas import (
    LoraScales,
    ModelName,
    Refused,
    StopString,
    StrictBody,
    TextOrIds,
    adapters_at_work,
)
from server.api.services import AnyTime, Services, WhileOpen
from server.api.streaming import Dialect, GenerationReply
from server.api.wanted import PlainText, TokenIds, Wanted
from server.engine.messages import SamplingParams

WHOLE_CONTEXT = -1  # llama.cpp's word for as many tokens as fit, and for a random seed


def router() -> APIRouter:
    """A fresh router; nothing of it is shared between apps."""
    routes = APIRouter()
    routes.post("/completion", response_model=None)(completion)
    routes.post("/completions", response_model=None)(completion)
    routes.get("/lora-adapters")(list_adapters)
    routes.post("/lora-adapters")(set_scales)
    return routes


class CompletionBody(StrictBody):
    """POST /completion, with llama.cpp's defaults."""

    refused: ClassVar[Refused] = {
        "n_keep": (0,),
        "n_indent": (0,),
        "n_probs": (0,),
        "n_cmpl": (1,),
        "min_keep": (0,),
        "post_sampling_probs": (False,),
        "t_max_predict_ms": (0,),
        "typical_p": (1, 1.0),
        "dynatemp_range": (0, 0.0),
        "dynatemp_exponent": (1, 1.0),
        "xtc_probability": (0, 0.0),
        "xtc_threshold": (0.1,),
        "dry_multiplier": (0, 0.0),
        "mirostat": (0,),
        "mirostat_tau": (5, 5.0),
        "mirostat_eta": (0.1,),
        "grammar": ("",),
        "json_schema": (),
        "logit_bias": ([],),
        "image_data": ([],),
        "id_slot": (-1,),
        "return_tokens": (False,),
        "return_progress": (False,),
        "timings_per_token": (False,),
        "samplers": (),
        "response_fields": ([],),
    }

    prompt: TextOrIds
    model: ModelName | None = None
    n_predict: Annotated[int, Field(ge=WHOLE_CONTEXT, le=2**31 - 1)] = WHOLE_CONTEXT
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.8
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] = 40
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.05
    repeat_penalty: Annotated[float, Field(gt=0, le=100)] = 1.0
    repeat_last_n: int | None = None  # of penalties
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    seed: Annotated[int, Field(ge=-1, le=2**63 - 1)] = -1
    stop: Annotated[list[StopString], Field(max_length=16)] = Field(default_factory=list)
    ignore_eos: bool = False
    stream: bool = False
    cache_prompt: bool = True  # a hint: what is cached never changes an answer
    lora: LoraScales | None = None

    @model_validator(mode="after")
    def _served(self) -> "CompletionBody":
        if self.n_predict == 0:
            raise PydanticCustomError(
                UNSUPPORTED, "a prompt alone is not read; send 1 or more", {AT: "n_predict"}
            )
        penalised = (self.repeat_penalty, self.presence_penalty, self.frequency_penalty)
        if penalised != (1, 0, 0) and self.repeat_last_n not in (None, WHOLE_CONTEXT):
            raise PydanticCustomError(
                UNSUPPORTED, "penalties count the whole text; send -1", {AT: "repeat_last_n"}
            )
        return self

    def wanted(self, base: str) -> Wanted:
        prompt = self.prompt
        return Wanted(
            model=self.model or base,
            adapter_id=None,
            prompts=(PlainText(prompt) if isinstance(prompt, str) else TokenIds(tuple(prompt)),),
            n=1,
            max_tokens=None if self.n_predict == WHOLE_CONTEXT else self.n_predict,
            default_max_tokens=None,
            sampling=self._sampling,
            stop=tuple(self.stop),
            echo=False,
            stream=self.stream,
            include_usage=False,
            lora=adapters_at_work(self.lora),
        )

    def _sampling(self, max_tokens: int) -> SamplingParams:
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repeat_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=None if self.seed < 0 else self.seed,
            ignore_eos=self.ignore_eos,
        )


class ScalesBody(StrictBody):
    """POST /lora-adapters: the array, as a field."""

    adapters: LoraScales


async def completion(request: Request, services: WhileOpen) -> Response:
    """Continue a text or token ids."""
    body = await read_json(request, CompletionBody, max_bytes=services.limits.max_body_bytes)
    return _reply(services, body.wanted(services.base_name))


def _reply(services: Services, wanted: Wanted) -> GenerationReply:
    return GenerationReply(services, wanted, Dialect("cmpl", CompletionFormat, done=b""))


async def list_adapters(services: AnyTime) -> list[Json]:
    """Every adapter with its number; scale 0, since only a request puts one to work."""
    records = await asyncio.to_thread(every_adapter, services.store)
    return [
        {"id": record.id, "path": record.name, "scale": 0.0}
        for record in sorted(records, key=lambda record: record.id)
    ]


async def set_scales(request: Request, services: WhileOpen) -> Json:
    """Takes scale 0 for all, which is so already. Raises UnsupportedParameter for more."""
    limit = services.limits.max_body_bytes
    body = await read_list(request, ScalesBody, field="adapters", max_bytes=limit)
    if adapters_at_work(body.adapters):
        raise UnsupportedParameter(
            "no adapter is put to work for all requests here: send lora with each request, or name "
            "the adapter in model",
            param="adapters",
        )
    return {"success": True}


class CompletionFormat:
    """`content`, and how it ended; a stream's last chunk has the ending and no content."""

    def __init__(self, generation: Generation) -> None:
        self._model = generation.model
        self._digest = generation.digest
        self._prompt_tokens = len(generation.requests[0].prompt)
        self._end: Delta | None = None

    def whole(self, answers: Sequence[Answer], usage: Usage) -> Json:
        (answer,) = answers
        return {"content": "".join(answer.text), **self._ending(answer, usage)}

    def chunks(self, delta: Delta) -> list[Json]:
        if delta.finish_reason is not None:
            self._end = delta
        if not delta.text:
            return []
        return [{"index": 0, "content": delta.text, "tokens": [], "stop": False}]

    def closing(self, usage: Usage) -> list[Json]:
        assert self._end is not None, "every sequence ends"
        return [{"content": "", **self._ending(self._end, usage)}]

    def _ending(self, end: Delta | Answer, usage: Usage) -> Json:
        by_limit = end.finish_reason == "length"
        kind = "limit" if by_limit else "eos" if end.stop_string is None else "word"
        return {
            "index": 0,
            "tokens": [],
            "stop": True,
            "model": self._model,
            "adapter_version": self._digest,
            "tokens_predicted": usage.completion_tokens,
            "tokens_evaluated": self._prompt_tokens,
            "tokens_cached": usage.cached_tokens,
            "stop_type": kind,
            "stopping_word": end.stop_string or "",
            "truncated": False,
        }

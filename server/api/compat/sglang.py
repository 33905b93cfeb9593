"""SGLang's calls that load and unload adapters, and what it takes and gives at /generate.

Here: routes, bodies, GenerateFormat. Not here: the path /generate, which it shares with LoRAX
(lorax.py); `base:adapter` as a model's name (generation.py).
"""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from adapters_store.catalog import AdapterRecord
from adapters_store.errors import AdapterNotFound, AlreadyLoaded
from server.api.bodies import AT, MISPLACED, read_json
from server.api.choice import Delta, Ending
from server.api.errors import told_as
from server.api.generation import Generation, Usage
from server.api.loading import ORIGIN, SourceField, load_as, unload
from server.api.openai import every_adapter
from server.api.openai_format import Answer, Json
from server.api.schemas import ModelName, Refused, Stop, StrictBody, TokenId
from server.api.services import Services, WhileOpen
from server.api.streaming import Dialect, GenerationReply
from server.api.wanted import PlainText, TokenIds, Wanted
from server.engine.messages import SamplingParams

FIELDS = {"name": "lora_name", "source": "lora_path"}  # ours → SGLang's
DEFAULT_TOKENS = 128  # SGLang's


def router() -> APIRouter:
    """A fresh router; nothing of it is shared between apps."""
    routes = APIRouter()
    routes.post("/load_lora_adapter")(load_lora_adapter)
    routes.post("/unload_lora_adapter")(unload_lora_adapter)
    return routes


class LoadBody(StrictBody):
    """POST /load_lora_adapter."""

    refused: ClassVar[Refused] = {"lora_id": ()}

    lora_name: Annotated[str, Field(min_length=1)]
    lora_path: SourceField
    pinned: bool = False  # its slot stays its own
    upsert: bool = False  # replace the name's adapter, if there is one


class UnloadBody(StrictBody):
    """POST /unload_lora_adapter."""

    refused: ClassVar[Refused] = {"lora_id": ()}

    lora_name: Annotated[str, Field(min_length=1)]


async def load_lora_adapter(request: Request, services: WhileOpen) -> Json:
    """Publishes what is at `lora_path`; with `upsert`, as the next version of the name."""
    body = await read_json(request, LoadBody, max_bytes=services.limits.max_body_bytes)
    name = body.lora_name
    with told_as(FIELDS):
        try:
            version = await load_as(services, name, body.lora_path, in_place=body.upsert)
        except AlreadyLoaded:
            raise AlreadyLoaded(f"LoRA with name {name} already exists.", param="name") from None
    if body.pinned:
        await services.engine.pin(version.digest)
    return await _loaded(services)


async def unload_lora_adapter(request: Request, services: WhileOpen) -> Json:
    """Deletes the adapter; running requests finish on it."""
    body = await read_json(request, UnloadBody, max_bytes=services.limits.max_body_bytes)
    name = body.lora_name
    try:
        await unload(services, name)
    except AdapterNotFound:
        raise AdapterNotFound(f"LoRA with name {name} does not exist.", param="lora_name") from None
    return await _loaded(services)


async def _loaded(services: Services) -> Json:
    records = await asyncio.to_thread(every_adapter, services.store)
    paths = {record.name: _path(record) for record in records}
    return {"success": True, "error_message": None, "loaded_adapters": paths}


def _path(record: AdapterRecord) -> str:
    """Where the current version came from; for an upload its name and digest."""
    origin = record.current.facts.report.get(ORIGIN, {})
    uploaded = f"{record.name}@{record.current.digest[:12]}"
    return origin.get("path") or origin.get("hub") or uploaded


class Sampling(StrictBody):
    """`sampling_params`, with SGLang's defaults."""

    refused: ClassVar[Refused] = {
        "n": (1,),
        "json_schema": (),
        "regex": (),
        "ebnf": (),
        "structural_tag": (),
        "stop_regex": (),
        "skip_special_tokens": (True,),
        "spaces_between_special_tokens": (True,),
        "no_stop_trim": (False,),
        "stream_interval": (),
        "logit_bias": ({},),
        "custom_params": (),
    }

    max_new_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    min_new_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] = -1
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] = 1.0
    sampling_seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=128)] = Field(default_factory=list)
    ignore_eos: bool = False

    def params(self, max_tokens: int) -> SamplingParams:
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=self.min_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(self.top_k, 0),
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.sampling_seed,
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
        )


class GenerateBody(StrictBody):
    """POST /generate with `text` or `input_ids`."""

    refused: ClassVar[Refused] = {
        "input_embeds": (),
        "image_data": (),
        "audio_data": (),
        "video_data": (),
        "modalities": ([],),
        "return_logprob": (False,),
        "logprob_start_len": (-1,),
        "top_logprobs_num": (0,),
        "token_ids_logprob": (),
        "return_text_in_logprobs": (False,),
        "return_hidden_states": (False,),
        "session_params": (),
        "custom_logit_processor": (),
        "rid": (),
    }

    text: str | None = None
    input_ids: Annotated[list[TokenId], Field(min_length=1)] | None = None
    sampling_params: Sampling = Field(default_factory=Sampling)
    lora_path: ModelName | None = None  # the name that a load call gave the adapter
    stream: bool = False

    @model_validator(mode="after")
    def _one_prompt(self) -> "GenerateBody":
        if (self.text is None) == (self.input_ids is None):
            raise PydanticCustomError(
                MISPLACED, "or text is wanted, one of them and not both", {AT: "input_ids"}
            )
        return self

    def wanted(self, base: str) -> Wanted:
        stop = self.sampling_params.stop or ()
        ids = TokenIds(tuple(self.input_ids or ()))
        return Wanted(
            model=base,
            adapter_id=self.lora_path,
            prompts=(ids if self.text is None else PlainText(self.text),),
            n=1,
            max_tokens=self.sampling_params.max_new_tokens,
            default_max_tokens=DEFAULT_TOKENS,
            sampling=self.sampling_params.params,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            echo=False,
            stream=self.stream,
            include_usage=False,
        )

    def reply(self, services: Services) -> GenerationReply:
        names = {
            "prompt": "text" if self.input_ids is None else "input_ids",
            "adapter_id": "lora_path",
            "min_tokens": "sampling_params.min_new_tokens",
            "stop_token_ids": "sampling_params.stop_token_ids",
        }
        dialect = Dialect("gen", GenerateFormat, fields=names)
        return GenerationReply(services, self.wanted(services.base_name), dialect)


class GenerateFormat:
    """`text` and `meta_info`. A stream's chunks carry all of the text so far, as SGLang's do."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._text = ""
        self._end: tuple[Ending | None, str | None] = (None, None)

    def whole(self, answers: Sequence[Answer], usage: Usage) -> Json:
        (answer,) = answers
        self._text = "".join(answer.text)
        self._end = (answer.finish_reason, answer.stop_string)
        return self._complete(usage)

    def chunks(self, delta: Delta) -> list[Json]:
        self._text += delta.text
        self._end = (delta.finish_reason, delta.stop_string)
        if delta.finish_reason is not None:
            return []  # the closing chunk has it, with the counts
        return [{"text": self._text, "meta_info": self._meta() | {"finish_reason": None}}]

    def closing(self, usage: Usage) -> list[Json]:
        return [self._complete(usage)]

    def _complete(self, usage: Usage) -> Json:
        reason, stop_string = self._end
        finish: dict[str, Any] = {"type": reason}
        if reason == "length":
            finish["length"] = usage.completion_tokens
        elif stop_string is not None:
            finish["matched"] = stop_string
        counts = {
            "finish_reason": finish,
            "completion_tokens": usage.completion_tokens,
            "cached_tokens": usage.cached_tokens,
        }
        return {"text": self._text, "meta_info": self._meta() | counts}

    def _meta(self) -> Json:
        return {
            "id": self._generation.id,
            "prompt_tokens": len(self._generation.requests[0].prompt),
            "adapter_version": self._generation.digest,
        }

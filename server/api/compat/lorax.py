"""LoRAX's dialect, which is TGI's with adapters: /generate, /generate_stream, / and /info.

Here: routes, the body, GenerateFormat. /generate is SGLang's path too: its bodies have `text` or
`input_ids` where LoRAX's have `inputs`, and are handed to sglang.py.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from server import __version__
from server.api.bodies import read_json, read_one_of
from server.api.choice import Delta, TokenLogprob
from server.api.compat import sglang
from server.api.generation import Generation, Usage
from server.api.openai_format import Answer, Json
from server.api.schemas import ModelName, Refused, StopString, StrictBody
from server.api.services import AnyTime, Services, WhileOpen
from server.api.streaming import Dialect, GenerationReply
from server.api.wanted import PlainText, Wanted
from server.engine.messages import SamplingParams

MAX_STOPS = 16
FIELDS = {  # ours → LoRAX's
    "prompt": "inputs",
    "adapter_id": "parameters.adapter_id",
}


def router() -> APIRouter:
    """A fresh router; nothing of it is shared between apps."""
    routes = APIRouter()
    routes.post("/generate", response_model=None)(generate)
    routes.post("/generate_stream", response_model=None)(generate_stream)
    routes.post("/", response_model=None)(generate_listed)
    routes.get("/info")(info)
    return routes


class Parameters(StrictBody):
    """`parameters`, as lorax-client and Hugging Face's InferenceClient send them."""

    refused: ClassVar[Refused] = {
        "adapter_source": (),
        "merged_adapters": (),
        "api_token": (),
        "best_of": (1,),
        "typical_p": (1, 1.0),
        "truncate": (),
        "watermark": (False,),
        "decoder_input_details": (False,),
        "return_k_alternatives": (),
        "top_n_tokens": (0,),
        "apply_chat_template": (False,),
        "response_format": (),
        "grammar": (),
    }

    adapter_id: ModelName | None = None
    max_new_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    do_sample: bool = False
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] = 1.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    stop: Annotated[list[StopString], Field(max_length=MAX_STOPS)] = Field(default_factory=list)
    ignore_eos_token: bool = False
    return_full_text: bool = False
    details: bool = False

    @property
    def sampled(self) -> bool:
        """Whether chance is wanted: to LoRAX a temperature, top_k or top_p says so, too."""
        shaped = self.temperature not in (None, 0, 1) or self.top_k > 0 or self.top_p < 1
        return (self.do_sample or shaped) and self.temperature != 0

    def sampling(self, max_tokens: int, *, logprobs: bool) -> SamplingParams:
        given = 1.0 if self.temperature is None else self.temperature
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=given if self.sampled else 0.0,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            ignore_eos=self.ignore_eos_token,
            logprobs=0 if logprobs else None,
        )


class GenerateBody(StrictBody):
    """POST /generate, /generate_stream and /."""

    inputs: Annotated[str, Field(min_length=1)]
    parameters: Parameters = Field(default_factory=Parameters)
    stream: bool = False

    def reply(
        self, services: Services, *, stream: bool | None = None, listed: bool = False
    ) -> GenerationReply:
        """`stream`: what the path says, if it says it; `listed`: as a list of one, unstreamed."""
        asked = self.parameters
        streamed = self.stream if stream is None else stream
        wanted = Wanted(
            model=services.base_name,
            adapter_id=asked.adapter_id,
            prompts=(PlainText(self.inputs),),
            n=1,
            max_tokens=asked.max_new_tokens,
            default_max_tokens=None,
            sampling=lambda most: asked.sampling(most, logprobs=streamed or asked.details),
            stop=tuple(asked.stop),
            echo=False,
            stream=streamed,
            include_usage=False,
        )

        def form(generation: Generation) -> GenerateFormat:
            return GenerateFormat(generation, self, listed=listed)

        return GenerationReply(services, wanted, Dialect("gen", form, fields=FIELDS, done=b""))


async def generate(request: Request, services: WhileOpen) -> Response:
    """One answer, whole or streamed as `stream` says; SGLang's bodies are told by their fields."""
    body = await read_one_of(request, _dialect, max_bytes=services.limits.max_body_bytes)
    return body.reply(services)


def _dialect(body: Mapping[str, Any]) -> type[GenerateBody] | type[sglang.GenerateBody]:
    theirs = "inputs" not in body and ("text" in body or "input_ids" in body)
    return sglang.GenerateBody if theirs else GenerateBody


async def generate_stream(request: Request, services: WhileOpen) -> Response:
    """One answer, token by token."""
    body = await read_json(request, GenerateBody, max_bytes=services.limits.max_body_bytes)
    return body.reply(services, stream=True)


async def generate_listed(request: Request, services: WhileOpen) -> Response:
    """The same as /generate, the whole answer in a list: what both clients call."""
    body = await read_json(request, GenerateBody, max_bytes=services.limits.max_body_bytes)
    return body.reply(services, listed=True)


async def info(services: AnyTime) -> Json:
    """What is served, in TGI's fields. Raises EngineUnavailable."""
    engine = services.require_engine()
    return {
        "model_id": services.base_name,
        "model_sha": engine.digest,
        "model_dtype": engine.dtype,
        "model_device_type": engine.device,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": services.limits.max_requests,
        "max_best_of": 1,
        "max_stop_sequences": MAX_STOPS,
        "max_input_length": engine.max_model_len - 1,
        "max_total_tokens": engine.max_model_len,
        "version": __version__,
    }


class GenerateFormat:
    """`generated_text` and `details`, whole; in a stream an event per token, the last with both."""

    def __init__(self, generation: Generation, body: GenerateBody, *, listed: bool) -> None:
        self._prompt_tokens = len(generation.requests[0].prompt)
        self._parameters = body.parameters
        self._before = body.inputs if body.parameters.return_full_text else ""
        self._listed = listed
        self._texts: list[str] = []  # of the deltas so far
        self._waiting = ""  # of them, what no token has carried yet
        self._carried = 0  # characters that tokens have carried
        self._last: tuple[Json, Delta] | None = None  # the last token, and what it came with

    def whole(self, answers: Sequence[Answer], usage: Usage) -> Json | list[Json]:
        (answer,) = answers
        text = "".join(answer.text)
        reply: Json = {"generated_text": self._before + text}
        if self._parameters.details:
            tokens = _tokens(text, 0, (*answer.logprobs, *answer.unshown))
            ending = self._ending(_finish_reason(answer), usage)
            reply["details"] = ending | {"prefill": [], "tokens": tokens}
        return [reply] if self._listed else reply

    def chunks(self, delta: Delta) -> list[Json]:
        self._texts.append(delta.text)
        self._waiting += delta.text
        came = (*delta.logprobs, *delta.unshown)
        if not came:
            return []  # text of a token that is out already: the next one carries it
        tokens = _tokens(self._waiting, self._carried, came)
        self._carried += len(self._waiting)
        self._waiting = ""
        if delta.finish_reason is not None:
            self._last = (tokens.pop(), delta)
        return [{"token": token, "generated_text": None, "details": None} for token in tokens]

    def closing(self, usage: Usage) -> list[Json]:
        assert self._last is not None, "a sequence ends with a token"
        token, delta = self._last
        return [
            {
                "token": token,
                "generated_text": self._before + "".join(self._texts),
                "details": self._ending(_finish_reason(delta), usage),
            }
        ]

    def _ending(self, finish_reason: str, usage: Usage) -> Json:
        return {
            "finish_reason": finish_reason,
            "prompt_tokens": self._prompt_tokens,
            "generated_tokens": usage.completion_tokens,
            "skipped_tokens": 0,  # of speculation, as newer LoRAX counts it
            "seed": self._parameters.seed if self._parameters.sampled else None,
        }


def _finish_reason(end: Delta | Answer) -> str:
    """OpenAI's "stop" is two reasons here."""
    if end.finish_reason == "length":
        return "length"
    return "eos_token" if end.stop_string is None else "stop_sequence"


def _tokens(text: str, start: int, came: Sequence[TokenLogprob]) -> list[Json]:
    """The tokens with what each wrote of `text`, which begins at `start` of the answer.

    All of `text` is in one of them: the first also has what came before its own. A token that wrote
    nothing is empty, or shows its name if it is a control token.
    """
    cuts = [0, *(max(0, one.offset - start) for one in came[1:]), len(text)]
    return [
        _token(one, text[begin:end]) for one, (begin, end) in zip(came, pairwise(cuts), strict=True)
    ]


def _token(one: TokenLogprob, wrote: str) -> Json:
    named = one.token.special and not wrote
    return {
        "id": one.token.id,
        "text": one.token.text if named else wrote,
        "logprob": one.logprob,
        "special": named,
        "skipped": False,
    }

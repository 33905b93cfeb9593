"""What an adapter changes, shown on one prompt: both answers, and the first token where they part.

Here: the route, its body and reply. Not here: how text is generated.
"""

import asyncio
import math
import uuid
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field

from adapters_store.errors import EngineUnavailable
from server.api.bodies import read_json
from server.api.errors import told_as
from server.api.generation import Generation, prepare
from server.api.lost_files import loading
from server.api.schemas import ModelName, StrictBody, TokenId
from server.api.services import Services, WhileOpen
from server.api.wanted import PlainText, TokenIds, Wanted
from server.engine.messages import FinishReason, GenerationRequest, SamplingParams, TokenEvent

Json = dict[str, Any]


class CompareBody(StrictBody):
    """POST /v1/adapters/{name}/compare."""

    prompt: str | Annotated[list[TokenId], Field(min_length=1)]
    against: ModelName | None = None  # another version, alias or adapter; None: the base
    max_tokens: Annotated[int, Field(ge=1, le=1024)] = 64


@dataclass(frozen=True, slots=True)
class _Answer:
    generation: Generation
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None


def router() -> APIRouter:
    """A fresh router; nothing of it is shared between apps."""
    routes = APIRouter(prefix="/v1/adapters")
    routes.post("/{name}/compare")(compare)
    return routes


async def compare(name: str, request: Request, services: WhileOpen) -> Json:
    """Greedy answers of `name` (any reference) and of what it is compared with, side by side.

    Raises ModelNotFound and whatever a completion may raise.
    """
    body = await read_json(request, CompareBody, max_bytes=services.limits.max_body_bytes)
    against = body.against or services.base_name
    with services.admission.place():
        one, other = await asyncio.gather(
            _answer(services, name, body, param="name"),
            _answer(services, against, body, param="against"),
        )
        common = _common(one.tokens, other.tokens)
        # Where the texts are the same, the first token tells most: what follows was given by it.
        parted = common < max(len(one.tokens), len(other.tokens))
        at = common if parted else 0
        ahead, behind = await asyncio.gather(
            _distribution(services, one, at), _distribution(services, other, at)
        )
    return {
        "object": "adapter.comparison",
        "prompt_tokens": len(one.generation.requests[0].prompt),
        "adapter": _shown(services, one),
        "against": _shown(services, other),
        "parts_at": None
        if not parted
        else {
            "index": common,
            "adapter": _token(services, one.tokens, common),
            "against": _token(services, other.tokens, common),
        },
        "kl_divergence": {"index": at, "nats": _kl(ahead, behind)},
    }


async def _answer(services: Services, model: str, body: CompareBody, *, param: str) -> _Answer:
    prompt = body.prompt
    wanted = Wanted(
        model=model,
        adapter_id=None,
        prompts=(PlainText(prompt) if isinstance(prompt, str) else TokenIds(tuple(prompt)),),
        n=1,
        max_tokens=body.max_tokens,
        default_max_tokens=None,
        sampling=lambda max_tokens: SamplingParams(max_tokens, temperature=0.0),
        stop=(),
        echo=False,
        stream=False,
        include_usage=False,
    )
    with told_as({"model": param}):
        generation = await prepare(services, wanted, request_id=f"cmp-{uuid.uuid4().hex}")
    async with loading(generation.adapter, services.store):
        events = await _events(services, generation.requests[0])
    tokens = tuple(event.token_id for event in events if event.token_id is not None)
    return _Answer(generation, tokens, events[-1].finish_reason)


async def _distribution(services: Services, answer: _Answer, at: int) -> dict[int, float]:
    """Log-probabilities of every token after the prompt and the answer's first `at` tokens."""
    request = answer.generation.requests[0]
    vocabulary = services.require_engine().vocab_size
    (event,) = await _events(
        services,
        replace(
            request,
            id=f"{request.id}-at",
            prompt=request.prompt + answer.tokens[:at],
            sampling=SamplingParams(1, temperature=0.0, logprobs=vocabulary, ignore_eos=True),
        ),
    )
    return dict(event.top_logprobs)


async def _events(services: Services, request: GenerationRequest) -> list[TokenEvent]:
    async with aclosing(services.engine.generate(request)) as steps:
        events = [event async for step in steps for event in step]
    if not events or events[-1].finish_reason is None:
        raise EngineUnavailable("the engine ended this request before it was complete")
    return events


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many tokens both begin with."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _kl(p: dict[int, float], q: dict[int, float]) -> float:
    """KL(p ‖ q) in nats; never below zero, where rounding would put it."""
    terms = (math.exp(own) * (own - q[token]) for token, own in p.items() if own > -math.inf)
    return max(0.0, math.fsum(terms))


def _token(services: Services, tokens: tuple[int, ...], at: int) -> Json | None:
    """None where the answer had ended by then."""
    if at >= len(tokens):
        return None
    return {"id": tokens[at], "token": services.text.token(tokens[at]).text}


def _shown(services: Services, answer: _Answer) -> Json:
    return {
        "model": answer.generation.model,
        "adapter_version": answer.generation.digest,  # null: the base
        "text": services.text.decode(answer.tokens),
        "completion_tokens": len(answer.tokens),
        "finish_reason": answer.finish_reason,
    }

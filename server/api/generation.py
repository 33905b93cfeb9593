"""The generation core, one for every dialect: from `Wanted` to deltas of text.

Here: prepare (names resolved once, prompts tokenised, lengths checked) and Run (the engine's events
followed to their end). Not here: JSON, SSE, status codes.
"""

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from adapters_store.catalog import VersionRecord
from adapters_store.errors import (
    AdapterdError,
    AdapterNotFound,
    AliasNotFound,
    ContextLengthExceeded,
    EngineUnavailable,
    InvalidRequest,
    ModelNotFound,
)
from server.api.choice import Choice, Delta
from server.api.lost_files import loading
from server.api.merge import merged
from server.api.services import Services
from server.api.wanted import PlainText, Prompt, TokenIds, Wanted
from server.engine.messages import EngineInfo, GenerationRequest, Timing, TokenEvent

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Generation:
    """One request, ready for the engine: a GenerationRequest for each prompt."""

    id: str
    model: str  # as the client named it
    adapter: VersionRecord | None  # None: the base
    requests: tuple[GenerationRequest, ...]
    stop: tuple[str, ...]
    echoes: tuple[str, ...]  # for each prompt, text to put before its answers
    base_digest: str
    created: int  # Unix seconds

    @property
    def digest(self) -> str | None:
        """Of the adapter version that answers."""
        return None if self.adapter is None else self.adapter.digest

    @property
    def choices(self) -> int:
        return sum(request.n for request in self.requests)


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # of the prompts' tokens, those that did not have to be computed


async def prepare(services: Services, wanted: Wanted, *, request_id: str) -> Generation:
    """Resolves the name, then tokenises.

    Raises EngineUnavailable, ModelNotFound, ContextLengthExceeded, InvalidRequest.
    """
    info = services.require_engine()
    limit = services.limits.max_choices
    if len(wanted.prompts) * wanted.n > limit:
        raise InvalidRequest(
            f"{len(wanted.prompts)} prompts × n = {wanted.n} is over the limit of {limit} choices; "
            "send several requests",
            param="n" if wanted.n > 1 else "prompt",
        )
    adapter = await _resolve(services, wanted)
    requests = [
        await _request(services, info, wanted, index, f"{request_id}-{index}", adapter)
        for index in range(len(wanted.prompts))
    ]
    return Generation(
        id=request_id,
        model=wanted.model,
        adapter=adapter,
        requests=tuple(requests),
        stop=wanted.stop,
        echoes=tuple(_echo(services, wanted, prompt) for prompt in wanted.prompts),
        base_digest=info.digest,
        created=int(time.time()),
    )


async def _resolve(services: Services, wanted: Wanted) -> VersionRecord | None:
    """The version that `model`, `adapter_id` and `lora` name between them; None for the base."""
    by_name = await _named(services, wanted)
    if wanted.lora is None:
        return by_name
    by_number = await _numbered(services, wanted.lora)
    if by_name is not None and (by_number is None or by_number.digest != by_name.digest):
        other = "no adapter" if by_number is None else repr(by_number.name)
        raise InvalidRequest(
            f"lora names {other}, and the request {by_name.name!r} by name; leave one of them out",
            param="lora",
        )
    return by_number


async def _numbered(services: Services, numbers: tuple[int, ...]) -> VersionRecord | None:
    """What llama.cpp's `lora` names: an adapter by its number, or none."""
    if not numbers:
        return None
    try:
        record = await asyncio.to_thread(services.store.of_number, numbers[0])
    except AdapterNotFound:
        raise ModelNotFound(
            f"no adapter has the id {numbers[0]}; GET /lora-adapters lists what does", param="lora"
        ) from None
    services.metrics.learn_name(record.current.digest, record.name)
    return record.current


def _without_base(model: str, base: str) -> str:
    """The adapter of SGLang's `base:adapter`; any other name as it is."""
    return model.removeprefix(f"{base}:")


async def _named(services: Services, wanted: Wanted) -> VersionRecord | None:
    """What `model` and `adapter_id` name between them; None for the base."""
    by_model, key = None, wanted.sticky_key
    if wanted.model != services.base_name:
        name = _without_base(wanted.model, services.base_name)
        by_model = await _version(services, name, key, param="model")
    if wanted.adapter_id is None or wanted.adapter_id == wanted.model:
        return by_model
    by_id = await _version(services, wanted.adapter_id, key, param="adapter_id")
    if by_model is not None and by_model.digest != by_id.digest:
        raise InvalidRequest(
            f"model names {wanted.model!r} and adapter_id {wanted.adapter_id!r}, which are not the "
            "same adapter version; name it in one of them",
            param="adapter_id",
        )
    return by_id


async def _version(services: Services, name: str, key: str | None, *, param: str) -> VersionRecord:
    try:
        version = await asyncio.to_thread(services.store.resolve, name, key=key)
    except InvalidRequest as error:
        raise InvalidRequest(error.message, param=param) from None
    except (AdapterNotFound, AliasNotFound):
        raise ModelNotFound(
            f"the model {name!r} does not exist; GET /v1/models lists what does", param=param
        ) from None
    services.metrics.learn_name(version.digest, version.name)
    return version


async def _request(
    services: Services,
    info: EngineInfo,
    wanted: Wanted,
    index: int,
    request_id: str,
    adapter: VersionRecord | None,
) -> GenerationRequest:
    prompt = wanted.prompts[index]
    param = "prompt" if isinstance(prompt, (PlainText, TokenIds)) else "messages"
    if len(wanted.prompts) > 1:
        param += f"[{index}]"
    ids = await services.text.encode(prompt, param=param, context=info.max_model_len)
    _check_ids(ids, info, param)
    sampling = wanted.sampling(_max_tokens(len(ids), wanted, info.max_model_len, param))
    if sampling.min_tokens > sampling.max_tokens:
        raise InvalidRequest(
            f"min_tokens is {sampling.min_tokens}, over max_tokens, {sampling.max_tokens}",
            param="min_tokens",
        )
    too_big = [one for one in sampling.stop_token_ids if one >= info.vocab_size]
    if too_big:
        raise InvalidRequest(
            f"stop_token_ids: {too_big[0]} is no token; the vocabulary has {info.vocab_size}",
            param="stop_token_ids",
        )
    digest = None if adapter is None else adapter.digest
    return GenerationRequest(request_id, ids, sampling, digest, wanted.n, wanted.cache_salt)


def _check_ids(ids: tuple[int, ...], info: EngineInfo, param: str) -> None:
    if not ids:
        raise InvalidRequest(f"{param}: no tokens; send at least one", param=param)
    largest = max(ids)
    if largest >= info.vocab_size:
        raise InvalidRequest(
            f"{param}: {largest} is no token; the vocabulary has {info.vocab_size}", param=param
        )


def _max_tokens(prompt_tokens: int, wanted: Wanted, context: int, param: str) -> int:
    """How many tokens may be generated. Raises ContextLengthExceeded, saying both lengths."""
    left = context - prompt_tokens
    if left < 1:
        raise ContextLengthExceeded(
            f"the context is {context} tokens, and the prompt has {prompt_tokens}, which leaves "
            "none for the answer; shorten the prompt",
            param=param,
        )
    if wanted.max_tokens is None:
        return left if wanted.default_max_tokens is None else min(left, wanted.default_max_tokens)
    if wanted.max_tokens > left:
        raise ContextLengthExceeded(
            f"the context is {context} tokens, and {prompt_tokens + wanted.max_tokens} are asked "
            f"for: {prompt_tokens} in the prompt and {wanted.max_tokens} of max_tokens; shorten "
            "one of them",
            param=param,
        )
    return wanted.max_tokens


def _echo(services: Services, wanted: Wanted, prompt: Prompt) -> str:
    if not wanted.echo:
        return ""
    if isinstance(prompt, PlainText):
        return prompt.text
    assert isinstance(prompt, TokenIds), "only completions know echo"
    return services.text.decode(prompt.ids)


class Run:
    """One generation under way: follows each prompt's events and counts what came.

    Closing `deltas` at any point aborts in the engine whatever has not ended.
    """

    def __init__(self, services: Services, generation: Generation) -> None:
        self._services = services
        self._generation = generation
        self._choices: list[Choice] = []
        self._timing: Timing | None = None
        self._cached: dict[str, int] = {}  # tokens, by prompt

    @property
    def usage(self) -> Usage:
        """So far."""
        return Usage(
            sum(len(request.prompt) for request in self._generation.requests),
            sum(choice.tokens for choice in self._choices),
            sum(self._cached.values()),
        )

    @property
    def timing(self) -> Timing | None:
        """The slowest of the prompts that have begun; None before the first token."""
        return self._timing

    async def deltas(self) -> AsyncGenerator[list[Delta]]:
        """Each step's additions; the first comes with the engine's first event, text or not.

        Raises what EngineClient.generate raises.
        """
        streams = []
        for request, echo in zip(self._generation.requests, self._generation.echoes, strict=True):
            choices = [self._choice(request) for _ in range(request.n)]
            streams.append(self._follow(request, choices, echo))
        async with aclosing(merged(streams)) as steps:
            async for step in steps:
                yield step

    def _choice(self, request: GenerationRequest) -> Choice:
        choice = Choice(
            len(self._choices),
            self._services.text,
            request.prompt,
            stop=self._generation.stop,
            min_tokens=request.sampling.min_tokens,
        )
        self._choices.append(choice)
        return choice

    async def _follow(
        self, request: GenerationRequest, choices: list[Choice], echo: str
    ) -> AsyncGenerator[list[Delta]]:
        """One prompt's events, until each of its choices has ended here or in the engine."""
        meter = self._services.metrics.begin(self._generation.adapter, request)
        outcome = "abort"  # closed from outside, unless one of the ends below is reached
        echoes = dict.fromkeys(range(len(choices)), echo)
        try:
            async with (
                loading(self._generation.adapter, self._services.store),
                aclosing(self._services.engine.generate(request)) as steps,
            ):
                async for events in steps:
                    deltas = []
                    for event in events:
                        choice = choices[event.index]
                        if choice.finish_reason is not None:
                            continue  # made before the engine heard of the stop string
                        self._note_timing(event.timing)
                        self._note_cached(event)
                        meter.token(event)
                        delta = choice.take(event)
                        if choice.finish_reason is not None and event.finish_reason is None:
                            self._services.engine.drop(request.id, event.index)  # a stop string
                        if before := echoes.pop(event.index, ""):
                            delta = dataclasses.replace(delta, text=before + delta.text)
                        deltas.append(delta)
                    yield deltas
                    if all(choice.finish_reason is not None for choice in choices):
                        break
            if any(choice.finish_reason is None for choice in choices):
                raise EngineUnavailable("the engine ended this request before it was complete")
            outcome = "done"
        except AdapterdError:
            outcome = "error"
            raise
        finally:
            meter.end(outcome, [(choice.finish_reason, choice.tokens) for choice in choices])
            self._log(request, outcome, choices)

    def _log(self, request: GenerationRequest, outcome: str, choices: list[Choice]) -> None:
        """One line for each prompt, which names the version that answered."""
        adapter = self._generation.adapter
        _LOG.debug(
            "request %s: %s by %s, %d + %d tokens",
            request.id,
            outcome,
            "the base" if adapter is None else f"{adapter.name}@{adapter.digest[:12]}",
            len(request.prompt),
            sum(choice.tokens for choice in choices),
        )

    def _note_cached(self, event: TokenEvent) -> None:
        """The least over a prompt's choices: a later one finds what the first has computed."""
        if event.cached_tokens is not None:
            least = self._cached.get(event.request_id, event.cached_tokens)
            self._cached[event.request_id] = min(least, event.cached_tokens)

    def _note_timing(self, timing: Timing | None) -> None:
        if timing is None:
            return
        old = self._timing or timing
        self._timing = Timing(
            queue_s=max(old.queue_s, timing.queue_s),
            load_s=max(old.load_s, timing.load_s),
            prefill_s=max(old.prefill_s, timing.prefill_s),
        )

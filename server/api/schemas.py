"""The bodies of OpenAI's completions and chat, strict: what is not served is refused by name.

Here: fields, their bounds (OpenAI's, or vLLM's where OpenAI has no such field), and the step from
either dialect to the one `Wanted`. Not here: names of adapters, tokens, HTTP.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic import BaseModel as Schema
from pydantic_core import PydanticCustomError

from server.api.bodies import AT, MISPLACED, UNSUPPORTED
from server.api.wanted import Conversation, Message, PlainText, Prompt, TokenIds, Wanted
from server.engine.messages import SamplingParams

MAX_LOGPROBS = 20
MAX_SALT = 256  # characters
COMPLETION_TOKENS = 16  # OpenAI's default for completions; a chat's is the rest of the context

# Fields that clients and other servers know, and the only values for which leaving them out of
# account changes nothing. Any other value is refused.
_ANYWHERE: Mapping[str, tuple[Any, ...]] = {
    "logit_bias": ({},),
    "service_tier": ("auto", "default"),
    "best_of": (),  # compared with n below
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "prompt_logprobs": (),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "logits_processors": ([],),
    "truncate_prompt_tokens": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "priority": (0,),
    "request_id": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "response_format": ({"type": "text"},),
    "kv_transfer_params": (),
}
_COMPLETIONS: Mapping[str, tuple[Any, ...]] = {
    **_ANYWHERE,
    "suffix": ("",),
    "add_special_tokens": (True,),
    "prompt_embeds": (),
}
_CHAT: Mapping[str, tuple[Any, ...]] = {
    **_ANYWHERE,
    "tools": ([],),
    "tool_choice": ("none",),
    "parallel_tool_calls": (),
    "functions": ([],),
    "function_call": ("none",),
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "store": (False,),
    "echo": (False,),
    "add_special_tokens": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "include_reasoning": (),
    "mm_processor_kwargs": ({},),
}


Refused = Mapping[str, tuple[Any, ...]]  # field → the values that change nothing


class StrictBody(Schema):
    """Strict types, no unknown field; null means "not given", as it does at OpenAI."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

    refused: ClassVar[Refused] = {}

    @model_validator(mode="before")
    @classmethod
    def _drop_what_changes_nothing(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept = {}
        for name, value in data.items():
            if name in cls.refused:
                _refuse_unless_harmless(name, value, cls.refused[name], data)
            elif value is not None or name not in cls.model_fields:
                kept[name] = value
        return kept


def _refuse_unless_harmless(
    name: str, value: Any, harmless: tuple[Any, ...], data: Mapping[str, Any]
) -> None:
    if value is None or any(type(value) is type(ok) and value == ok for ok in harmless):
        return
    if name == "best_of" and type(value) is int and value == (data.get("n") or 1):
        return
    instead = " or ".join(repr(ok) for ok in harmless)
    remedy = f"leave it out, or send {instead}" if harmless else "leave it out"
    raise PydanticCustomError(UNSUPPORTED, "not supported by this server; {remedy}", {
        AT: name, "remedy": remedy,
    })  # fmt: skip


TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
ModelName = Annotated[str, Field(min_length=1, max_length=512)]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]


def _by_type(value: Any) -> str:
    return "~array" if isinstance(value, list) else "~string"


def _prompt_kind(value: Any) -> str:
    first = value[0] if isinstance(value, list) and value else None
    if not isinstance(value, list):
        return "~string"
    if isinstance(first, list):
        return "~ids of several"
    return "~strings" if isinstance(first, str) or first is None else "~ids"


Stop = Annotated[
    Annotated[StopString, Tag("~string")]
    | Annotated[list[StopString], Field(max_length=16), Tag("~array")],
    Discriminator(_by_type),
]
TextOrIds = Annotated[
    Annotated[str, Tag("~string")] | Annotated[list[TokenId], Field(min_length=1), Tag("~array")],
    Discriminator(_by_type),
]
PromptField = Annotated[
    Annotated[str, Tag("~string")]
    | Annotated[list[str], Field(min_length=1), Tag("~strings")]
    | Annotated[list[TokenId], Field(min_length=1), Tag("~ids")]
    | Annotated[
        list[Annotated[list[TokenId], Field(min_length=1)]],
        Field(min_length=1),
        Tag("~ids of several"),
    ],
    Discriminator(_prompt_kind),
]


class StreamOptions(StrictBody):
    refused = {"include_obfuscation": (False,), "continuous_usage_stats": (False,)}

    include_usage: bool = False


class LoraScale(StrictBody):
    """llama.cpp's word for an adapter: the number that GET /lora-adapters gives it."""

    id: Annotated[int, Field(ge=0, le=2**31 - 1)]
    scale: Annotated[float, Field(ge=-1000, le=1000)]

    @model_validator(mode="after")
    def _all_or_nothing(self) -> "LoraScale":
        if self.scale not in (0, 1):
            raise PydanticCustomError(
                UNSUPPORTED,
                "an adapter is served as it was trained; send 1, or 0 for without it",
                {AT: "scale"},
            )
        return self


def _one_at_most(scales: list[LoraScale]) -> list[LoraScale]:
    at_work = [place for place, one in enumerate(scales) if one.scale]
    if len(at_work) > 1:
        raise PydanticCustomError(
            UNSUPPORTED,
            "one request is served by one adapter; leave scale 1 to one of them",
            {AT: at_work[1]},
        )
    if len({one.id for one in scales}) < len(scales):
        raise ValueError("each id may be there once")
    return scales


LoraScales = Annotated[list[LoraScale], Field(max_length=1024), AfterValidator(_one_at_most)]


def adapters_at_work(scales: list[LoraScale] | None) -> tuple[int, ...] | None:
    """Their numbers, none or one; None where nothing was said. One left out counts as scale 0."""
    return None if scales is None else tuple(one.id for one in scales if one.scale)


class GenerationBody(StrictBody):
    """The fields that both dialects share."""

    model: ModelName
    adapter_id: ModelName | None = None
    lora: LoraScales | None = None  # llama.cpp's way to name the adapter
    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] = 0  # 0 and, as in vLLM, -1: off
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    stop: Stop | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=128)] = Field(default_factory=list)
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    # Requests of different salts share nothing in the prefix cache: vLLM's field, and its meaning.
    cache_salt: Annotated[str, Field(min_length=1, max_length=MAX_SALT)] | None = None
    # Requests of one user get one version of an alias that means two (a canary).
    user: str | None = None
    # Hints about the caller or to a cache: without effect here, and none is promised by anyone.
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> "GenerationBody":
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                MISPLACED, "is only allowed with stream: true", {AT: "stream_options"}
            )
        return self

    def _wanted(self, prompts: tuple[Prompt, ...], **rest: Any) -> Wanted:
        stop = () if self.stop is None else self.stop
        return Wanted(
            model=self.model,
            adapter_id=self.adapter_id,
            prompts=prompts,
            n=self.n,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            stream=self.stream,
            include_usage=self.stream_options is not None and self.stream_options.include_usage,
            cache_salt=self.cache_salt or "",
            sticky_key=self.user,
            lora=adapters_at_work(self.lora),
            **rest,
        )

    def _sampling(self, max_tokens: int, logprobs: int | None) -> SamplingParams:
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(self.top_k, 0),
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
        )


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    refused = _COMPLETIONS

    prompt: PromptField
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _echo_without_logprobs(self) -> "CompletionBody":
        if self.echo and self.logprobs is not None:
            raise PydanticCustomError(
                UNSUPPORTED,
                "not supported together with echo: true; leave one out",
                {AT: "logprobs"},
            )
        return self

    def wanted(self) -> Wanted:
        return self._wanted(
            self._prompts(),
            max_tokens=self.max_tokens,
            default_max_tokens=COMPLETION_TOKENS,
            sampling=lambda max_tokens: self._sampling(max_tokens, self.logprobs),
            echo=self.echo,
        )

    def _prompts(self) -> tuple[Prompt, ...]:
        if isinstance(self.prompt, str):
            return (PlainText(self.prompt),)
        if isinstance(self.prompt[0], int):
            return (TokenIds(tuple(self.prompt)),)  # pyright: ignore[reportArgumentType]
        return tuple(
            PlainText(one) if isinstance(one, str) else TokenIds(tuple(one))  # pyright: ignore[reportArgumentType]
            for one in self.prompt
        )


class TextPart(StrictBody):
    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _text_only(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("type"), str) and data["type"] != "text":
            raise PydanticCustomError(
                UNSUPPORTED, "only parts of type 'text' are supported by this server", {AT: "type"}
            )
        return data


class ChatMessage(StrictBody):
    # What clients send back of an earlier reply, empty; and parts of tool use, refused.
    refused = {
        "tool_calls": ([],),
        "tool_call_id": (),
        "function_call": (),
        "refusal": (),
        "audio": (),
        "annotations": ([],),
        "reasoning_content": (),
        "reasoning": (),
    }

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[str, Tag("~string")]
        | Annotated[list[TextPart], Field(min_length=1), Tag("~array")],
        Discriminator(_by_type),
    ]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_tool_roles(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("role") in ("tool", "function"):
            raise PydanticCustomError(
                UNSUPPORTED, "tool messages are not supported by this server", {AT: "role"}
            )
        return data

    def message(self) -> Message:
        """As a chat template takes it. `developer` is OpenAI's newer word for `system`."""
        content = self.content
        text = content if isinstance(content, str) else "\n".join(part.text for part in content)
        return Message("system" if self.role == "developer" else self.role, text, self.name)


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    refused = _CHAT

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> "ChatBody":
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError(
                MISPLACED, "is only allowed with logprobs: true", {AT: "top_logprobs"}
            )
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            raise ValueError("max_tokens and max_completion_tokens differ; send one of them")
        return self

    def wanted(self) -> Wanted:
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return self._wanted(
            (Conversation(tuple(message.message() for message in self.messages)),),
            max_tokens=self.max_completion_tokens or self.max_tokens,
            default_max_tokens=None,
            sampling=lambda max_tokens: self._sampling(max_tokens, logprobs),
            echo=False,
        )

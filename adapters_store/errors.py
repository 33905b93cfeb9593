"""The one error tree. Below every other import; knows no HTTP (server/api/errors.py maps it).

AdapterdError
├── InvalidRequest              what the caller sent cannot be served as it stands
│   ├── ContextLengthExceeded   prompt + max_tokens do not fit the context
│   ├── UnsupportedParameter    a known parameter this server does not implement
│   ├── AlreadyLoaded           a load call names an adapter that is there, not to be replaced
│   ├── InvalidDataset          a training file has lines that cannot be trained on
│   └── InvalidAdapter          an adapter's files are malformed or do not fit the base
│       └── UnsupportedAdapter  well-formed, but of a kind or option not served here
├── TooLarge                    a body or an upload over its limit
├── UnsupportedMediaType        a body of a content type the route does not take
├── MethodNotAllowed            the path exists, the verb does not
├── NotFound                    no such route or object
│   ├── ModelNotFound           a completion named an adapter or model that is not there
│   ├── AdapterNotFound         an adapter route named an adapter that is not there
│   ├── AliasNotFound           the adapter is there, but has no such alias
│   ├── FileNotKept             no uploaded file has this id
│   └── JobNotFound             no fine-tuning job has this id
├── Conflict                    the state forbids it
│   ├── NameReserved            the name belongs to the base model
│   ├── AliasMoved              an alias does not mean what the caller expected it to
│   └── VersionInUse            an alias means the version that was to be deleted
├── Overloaded                  too much waiting; try again later
├── Unavailable                 a part of the server cannot answer now; try again later
│   ├── EngineUnavailable       the engine is starting, restarting or stopped
│   └── Draining                the server is shutting down
└── ServerFault                 our fault, or the machine's
    ├── EngineStartFailed       the engine cannot serve this base; message says which part and why
    ├── AdapterLoadFailed       a stored adapter could not be made resident
    ├── StoreCorrupt            stored bytes no longer match their digest
    └── EngineFailed            a step raised; the request it was for is over
"""

from collections.abc import Iterator


class AdapterdError(Exception):
    """An error a user is told of. `message` names what is wrong and the remedy.

    `param` is the request field at fault, if one is. `code` is stable and machine-readable.
    """

    code = "error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(AdapterdError):
    """What the caller sent cannot be served as it stands."""

    code = "invalid_request"


class ContextLengthExceeded(InvalidRequest):
    """The prompt, or prompt + max_tokens, exceeds the context; the message says both lengths."""

    code = "context_length_exceeded"


class UnsupportedParameter(InvalidRequest):
    """A parameter that is known but not implemented here; refused rather than dropped."""

    code = "unsupported_parameter"


class AlreadyLoaded(InvalidRequest):
    """A load call names an adapter that is there already, and does not ask to replace it."""

    code = "already_loaded"


class InvalidDataset(InvalidRequest):
    """A training file has lines that cannot be trained on; the message numbers the first."""

    code = "invalid_dataset"


class InvalidAdapter(InvalidRequest):
    """An adapter's files are malformed or do not fit the base; the message says where."""

    code = "invalid_adapter"


class UnsupportedAdapter(InvalidAdapter):
    """A well-formed adapter of a kind, or with an option, that is not served here."""

    code = "unsupported_adapter"


class TooLarge(AdapterdError):
    """A body or an upload over its limit; the message says the limit."""

    code = "too_large"


class UnsupportedMediaType(AdapterdError):
    """A body of a content type that the route does not take."""

    code = "unsupported_media_type"


class MethodNotAllowed(AdapterdError):
    """The path exists, the verb does not."""

    code = "method_not_allowed"


class NotFound(AdapterdError):
    """No such route or object."""

    code = "not_found"


class ModelNotFound(NotFound):
    """A completion named a model or adapter that is not there."""

    code = "model_not_found"


class AdapterNotFound(NotFound):
    """No adapter or version has this name or digest."""

    code = "adapter_not_found"


class AliasNotFound(NotFound):
    """The adapter is there, but has no alias of this tag."""

    code = "alias_not_found"


class FileNotKept(NotFound):
    """No uploaded file has this id, or it has been deleted."""

    code = "file_not_found"


class JobNotFound(NotFound):
    """No fine-tuning job of this base has this id."""

    code = "job_not_found"


class Conflict(AdapterdError):
    """The present state forbids what was asked."""

    code = "conflict"


class NameReserved(Conflict):
    """The name belongs to the base model."""

    code = "name_reserved"


class AliasMoved(Conflict):
    """An alias does not mean what the caller expected it to: somebody else moved it."""

    code = "alias_moved"


class VersionInUse(Conflict):
    """An alias means the version that was to be deleted; the message says which."""

    code = "version_in_use"


class Overloaded(AdapterdError):
    """Too much is waiting already; try again later."""

    code = "overloaded"


class Unavailable(AdapterdError):
    """A part of the server cannot answer now; try again later."""

    code = "unavailable"


class EngineUnavailable(Unavailable):
    """The engine is starting, restarting or stopped; requests it held have ended."""

    code = "engine_unavailable"


class Draining(Unavailable):
    """The server is shutting down and takes no new requests."""

    code = "draining"


class ServerFault(AdapterdError):
    """Our fault, or the machine's."""

    code = "internal_error"


class EngineStartFailed(ServerFault):
    """The engine cannot serve this base; the message says which part and why."""

    code = "engine_start_failed"


class AdapterLoadFailed(ServerFault):
    """A stored adapter could not be made resident."""

    code = "adapter_load_failed"


class StoreCorrupt(ServerFault):
    """Stored bytes no longer match their digest."""

    code = "store_corrupt"


class EngineFailed(ServerFault):
    """A step raised; the request it was for is over."""

    code = "engine_failed"


def every_error(root: type[AdapterdError] = AdapterdError) -> Iterator[type[AdapterdError]]:
    """`root` and all its subclasses, parents first."""
    yield root
    for child in root.__subclasses__():
        yield from every_error(child)


def error_from_code(code: str, message: str, param: str | None = None) -> AdapterdError:
    """The error of this code, to raise again on the other side of a process boundary."""
    for kind in every_error():
        if kind.code == code:
            return kind(message, param=param)
    return ServerFault(message, param=param)

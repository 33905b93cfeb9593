"""From the body that asks for a fine-tuning job to the spec that a worker can rely on.

Here: what can be known before anything runs: the model, the files, the name, the kind. Not here:
fields and bounds (training/spec.py), routes, what "auto" comes to.
"""

import re
import secrets
from dataclasses import dataclass
from typing import Any

from adapters_store.errors import (
    AdapterNotFound,
    AliasNotFound,
    FileNotKept,
    InvalidRequest,
    ModelNotFound,
)
from adapters_store.store import AdapterStore
from adapters_store.strict_json import shorten
from server.api.errors import told_as
from training.dataset import format_of
from training.examples import Format
from training.jobs import JobBook
from training.publishable import require_publishable
from training.spec import JobRequest
from training.teacher_jobs import teacher_job
from training.uploads import PURPOSE

FORMATS: dict[str, tuple[Format, ...]] = {"supervised": ("chat", "prompt"), "dpo": ("preference",)}
FORMS = {"chat": "chat", "prompt": "text", "preference": "preference"}  # as users know them
MAX_STEM = 54  # of 63 characters; a hyphen and eight digits follow
SEEDS = 2**31

_NOT_OF_NAMES = re.compile(r"[^a-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Place:
    """What jobs are for."""

    store: AdapterStore
    base_name: str
    has_chat_template: bool
    owner: str = "default"


def settled(place: Place, request: JobRequest, job_id: str) -> dict[str, Any]:
    """The request as JSON, with its seed and its adapter's name; `JobRequest` takes it again.

    Blocks. Raises ModelNotFound, NameReserved, StoreCorrupt, Unavailable, and InvalidRequest or
    UnsupportedParameter naming the field.
    """
    require_base(place, request.model)
    require_publishable(request.adapterd)
    name = _name(place, request, job_id)
    method = request.method.type
    require_file(place, "training_file", request.training_file, method)
    if request.validation_file is not None:
        require_file(place, "validation_file", request.validation_file, method)
    if (general := request.adapterd.general_file) is not None:
        require_file(place, "adapterd.general_file", general, "supervised")
    if (teacher := request.adapterd.teacher) is not None and teacher.job is not None:
        book = JobBook(place.store.database, base=place.base_name)
        teacher_job(book, teacher.job, owner=place.owner)
    spec = request.model_dump(mode="json", exclude_none=True)
    spec["seed"] = secrets.randbelow(SEEDS) if request.seed is None else request.seed
    spec["adapterd"]["name"] = name
    return spec


def require_base(place: Place, model: str) -> None:
    """Raises ModelNotFound, and InvalidRequest if it is an adapter."""
    if model == place.base_name:
        return
    try:
        place.store.show(model)
    except InvalidRequest as error:
        raise InvalidRequest(error.message, param="model") from None
    except (AdapterNotFound, AliasNotFound):
        raise ModelNotFound(
            f"the model {shorten(model)} does not exist; jobs train {place.base_name!r}",
            param="model",
        ) from None
    raise InvalidRequest(
        f"{shorten(model)} is an adapter, and to continue training one is not supported; send "
        f"{place.base_name!r} as model, and the adapter's name as adapterd.name to make its "
        "next version",
        param="model",
    )


def _name(place: Place, request: JobRequest, job_id: str) -> str:
    """What the adapter will be called."""
    asked = request.adapterd.name
    if asked is not None and request.suffix is not None:
        raise InvalidRequest(
            "suffix: adapterd.name says the adapter's whole name; leave one of them out",
            param="suffix",
        )
    name = asked or _made_name(request.suffix, job_id)
    with told_as({"name": "adapterd.name"}):
        place.store.check_name(name)
    return name


def _made_name(suffix: str | None, job_id: str) -> str:
    stem = _NOT_OF_NAMES.sub("-", (suffix or "").lower()).strip("-._")[:MAX_STEM].rstrip("-._")
    return f"{stem or 'ft'}-{job_id[-8:]}"


def require_file(place: Place, field: str, file_id: str, method: str) -> None:
    """That a file is there, and its lines are what the method and the base take.

    The first line says it for all: they were found to be of one form when it was uploaded.
    Raises InvalidRequest (param `field`).
    """
    try:
        record = place.store.files.get(file_id)
        if record.purpose != PURPOSE:
            raise InvalidRequest(
                f"{field}: {file_id} is kept for {record.purpose!r}, not {PURPOSE!r}; upload "
                "training data with POST /v1/files",
                param=field,
            )
        _, content = place.store.files.open(file_id)
    except FileNotKept as gone:
        raise InvalidRequest(f"{field}: {gone.message}", param=field) from None
    with content:
        form = format_of(content)
    wanted = FORMATS[method]
    if form not in wanted:
        takes = " or ".join(FORMS[one] for one in wanted)
        raise InvalidRequest(
            f"{field}: its lines are {FORMS[form]}; the method {method!r} takes {takes}",
            param=field,
        )
    if form != "prompt" and not place.has_chat_template:
        raise InvalidRequest(
            f"{field}: its lines are {FORMS[form]}, and {place.base_name!r} has no chat "
            "template; use lines of prompt and completion",
            param=field,
        )

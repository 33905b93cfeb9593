"""`adapterd train`: from a file of examples to an adapter, on a server or on this machine.

Here: the command, the upload, which options go together. Not here: what a job is asked
(training_options.py), following it (follow_job.py), training (train_here.py).
"""

import inspect
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from server.cli_jobs import hint, require_success, watch
from server.cli_options import DEFAULT_SERVER, Server
from server.cli_settings import setting_option
from server.cli_terminal import transfer_bar
from server.config import SettingsError, flag_of, load_settings
from server.http_client import ServerClient, ServerError
from server.job_view import job_view
from server.training_options import TrainingOptions, job_request

HERE = "On this machine (with --local)"
SETTINGS_HERE = (
    "model",
    "served_model_name",
    "data_dir",
    "store",
    "catalog",
    "device",
    "dtype",
    "threads",
    "config",
)  # what `adapterd serve` calls the same

Examples = Annotated[
    Path,
    typer.Argument(
        metavar="DATA", exists=True, dir_okay=False, show_default=False,
        help="JSONL, an example a line: messages, prompt and completion, or preferences.",
    ),
]  # fmt: skip
Validation = Annotated[
    Path | None,
    typer.Option(
        "--validation", exists=True, dir_okay=False, show_default=False,
        help="Examples of the same form to evaluate with. Default: a share of the data.",
    ),
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Data:
    """What is trained on, and what it is judged by; None: a share of the former."""

    training: Path
    validation: Path | None


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command()(with_training_options(train, SETTINGS_HERE))


def with_training_options(
    command: Callable[..., None], settings: Sequence[str]
) -> Callable[..., None]:
    """`command(…, options, flags)` as a function that typer reads one option per field from.

    `settings`: those that are told as `flags`, where they are given.
    """
    own = {field.name: field for field in fields(TrainingOptions)}

    def with_options(**given: Any) -> None:
        options = TrainingOptions(**{name: given.pop(name) for name in own})
        typed = {name: given.pop(name) for name in settings}
        flags = {name: value for name, value in typed.items() if value is not None}
        command(**given, options=options, flags=flags)

    kind = inspect.Parameter.KEYWORD_ONLY
    wanted = inspect.signature(command).parameters.values()
    parameters = [
        *(one.replace(kind=kind) for one in wanted if one.name not in ("options", "flags")),
        *(
            inspect.Parameter(name, kind, default=field.default, annotation=field.type)
            for name, field in own.items()
        ),
        *(setting_option(name, panel=HERE) for name in settings),
    ]
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__name__, with_options.__doc__ = command.__name__, command.__doc__
    return with_options


def train(
    context: typer.Context,
    data: Examples,
    options: TrainingOptions,
    flags: Mapping[str, str],
    validation: Validation = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Queue the job and return at once.")
    ] = False,
    local: Annotated[
        bool, typer.Option("--local", help="Train here, without a server or a worker.")
    ] = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Train an adapter and publish it as a version that requests can name at once.

    What is not said is chosen by the data and the base. Ctrl-C stops watching, not the job.

        adapterd train dates.jsonl --name dates

        adapterd train dates.jsonl --name dates --rank 8 --epochs 3 --better-than current
    """
    request, files = job_request(options), Data(data, validation)
    if local:
        source = context.get_parameter_source("server")  # the environment may name one all the same
        if detach or (source is not None and source.name == "COMMANDLINE"):
            other = "--detach" if detach else "--server"
            raise SettingsError(f"{other} does not go with --local, which trains in this process")
        return _train_here(files, request, flags)
    for name in flags:
        raise SettingsError(
            f"{flag_of(name)} is for --local: a server has its own. Leave it out, or add --local"
        )
    with ServerClient(server) as client:
        job = _submit(client, files, request)
        if detach:
            print(f"{job['id']} is {job['status']}")
            print(f"Follow it: {hint(client, 'follow', job['id'])}")
            return
        watch(client, job)


def _submit(client: ServerClient, data: Data, request: dict[str, Any]) -> dict[str, Any]:
    """The job; nothing is left on the server if it was refused."""
    paths = {"training_file": data.training}
    if data.validation is not None:
        paths["validation_file"] = data.validation
    body = request | {"model": client.base_name()}
    with ExitStack() as undo:
        for field, path in paths.items():
            body[field] = upload(client, path)
            undo.callback(_forget, client, body[field])
        try:
            job = client.create_job(body)
        except ServerError as error:
            if error.param not in paths:
                raise
            said = error.message.removeprefix(f"{error.param}: ")
            raise ServerError(f"{paths[error.param]}: {said}", status=error.status) from None
        undo.pop_all()
    return job


def upload(client: ServerClient, path: Path) -> str:
    """Its id. Raises ServerError; if the file is at fault, that names it."""
    with transfer_bar() as bar, path.open("rb") as file:
        task = bar.add_task(f"uploading {path.name}", total=path.stat().st_size)
        try:
            return client.upload_file(path.name, bar.wrap_file(file, task_id=task))["id"]
        except ServerError as error:
            if error.status is None:
                raise
            raise ServerError(f"{path}: {error.message}", status=error.status) from None


def _forget(client: ServerClient, file_id: str) -> None:
    with suppress(ServerError):  # the error that led here is the one to tell
        client.delete_file(file_id)


def _train_here(data: Data, request: dict[str, Any], flags: Mapping[str, str]) -> None:
    settings = load_settings(flags)
    from server.train_here import run  # brings torch

    with job_view() as view:
        job = run(settings, request, data.training, data.validation, view.show)
    require_success(job)
    typed = shlex.join(part for name in flags for part in (flag_of(name), flags[name]))
    print(f"Serve it, unless a server has the same data: {f'adapterd serve {typed}'.strip()}")
    if (reference := job["fine_tuned_model"]) is not None:
        print(f'Try it: adapterd complete --adapter {reference} "…"')
    else:
        print(f"Save its files: adapterd jobs report {job['id']} --output FILE")

"""`adapterd adapters import` and `inspect`: adapters that are still on the user's own disk.

Here: what these commands take and print. Not here: what makes an adapter fit (inspect_adapter.py).
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from adapters_store.errors import AdapterdError, InvalidAdapter
from server.cli_options import DEFAULT_SERVER, Server
from server.http_client import ServerClient, ServerError, peft_files

ARCHIVES = (".zip", ".tar.gz", ".tgz")


def add_to(adapters: typer.Typer) -> None:
    """Registers the commands."""
    adapters.command("import")(import_folder)
    adapters.command("inspect")(inspect_path)


def import_folder(
    folder: Annotated[
        Path,
        typer.Argument(
            exists=True,
            file_okay=False,
            help="Folder whose folders and archives are one adapter each.",
            show_default=False,
        ),
    ],
    server: Server = DEFAULT_SERVER,
) -> None:
    """Upload every adapter in a folder, each under its folder's or archive's name.

    What the server has already is not sent again, so an import that broke off goes on where it was.
    Adapters that are refused are listed at the end; the others are there all the same.
    """
    found = dict(_adapters_in(folder))
    if not found:
        raise ServerError(
            f"{folder} holds no adapter: neither folders with an adapter_config.json nor archives"
        )
    sent, refused = 0, {}
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        ServerClient(server) as client,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task("importing", total=len(found))
        for name, path in found.items():
            bar.update(task, description=name)
            try:
                sent += _send(client, name, path)
            except AdapterdError as error:
                refused[name] = error.message
            except ServerError as error:
                if error.status is None:  # no answer: the next would fare no better
                    raise
                refused[name] = error.message
            bar.advance(task)
    print(f"{sent} uploaded, {len(found) - sent - len(refused)} there already")
    if refused:
        lines = "".join(f"\n  {name}: {why}" for name, why in refused.items())
        raise ServerError(f"{len(refused)} of {len(found)} were refused:{lines}")


def _adapters_in(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.iterdir()):
        suffix = next((end for end in ARCHIVES if path.name.endswith(end)), "")
        if (path.is_file() and suffix) or (path / "adapter_config.json").is_file():
            yield path.name.removesuffix(suffix), path


def _send(client: ServerClient, name: str, path: Path) -> bool:
    """Whether it had to be uploaded."""
    from adapters_store.local_digest import local_digest  # brings torch

    try:
        paths = peft_files(path)
    except ServerError as error:  # a file is missing here: the server is well
        raise InvalidAdapter(error.message) from None
    if client.has(f"{name}@{local_digest(paths)}"):
        return False
    with ExitStack() as opened:
        files = [(each.name, opened.enter_context(each.open("rb"))) for each in paths]
        new, _ = client.push(name, files)
    return new


def inspect_path(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder that PEFT saved, or a .zip or .tar.gz of it.", show_default=False
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="Base to compare it with: a folder or hub id; its config is enough."),
    ] = None,
    max_rank: Annotated[
        int | None, typer.Option(min=1, help="The server's --max-rank, if it has one.")
    ] = None,
) -> None:
    """Explain an adapter before it is uploaded: what it is, what it fits, why it would be refused.

    adapterd adapters inspect ./my-adapter --model Qwen/Qwen3-0.6B
    """
    paths = peft_files(source)
    from server.inspect_adapter import inspect  # brings torch

    report = inspect(paths, model, max_rank=max_rank)
    width = max((len(key) for key, _ in report.facts), default=0)
    for key, value in report.facts:
        print(f"{key:<{width}}  {value}")
    if report.refusal is not None:
        print(f"would be refused: {report.refusal}", file=sys.stderr)
        raise typer.Exit(1)
    print("would be taken" if model else "well-formed; name a base with --model to see if it fits")

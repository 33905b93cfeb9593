"""The `adapterd` command: what each subcommand takes, and what it prints.

Here: typer commands, their tables, the one place where an error becomes a line on
stderr and an exit code (1: it did not work, 2: it was asked wrongly). Not here: settings
(config.py), HTTP (http_client.py), starting the server (serve.py). torch and transformers are
imported by the commands that need them, so that --help answers at once.
"""

import gc
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from adapters_store.errors import AdapterdError
from server import (
    __version__,
    cli_advise,
    cli_import,
    cli_jobs,
    cli_train,
    cli_tune,
    cli_versions,
)
from server.child_process import start_engine
from server.cli_options import DEFAULT_SERVER, AsJson, Name, Server
from server.cli_settings import human_bytes, takes_settings
from server.cli_terminal import print_table, transfer_bar
from server.config import SettingsError, load_settings
from server.http_client import Completion, ServerClient, ServerError, peft_files
from training.spec import NAME as JOB_NAME

app = typer.Typer(
    name="adapterd",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Serve one frozen base model with many LoRA adapters in one batch, over HTTP.",
    epilog="Start with: [bold]adapterd serve[/bold], then in another terminal: "
    "[bold]adapterd adapters list[/bold]",
)
adapters = typer.Typer(no_args_is_help=True, help="Upload, list, show, download, delete adapters.")
jobs = typer.Typer(no_args_is_help=True, help="Follow, steer and judge training jobs.")
demo_app = typer.Typer(no_args_is_help=True, help="The embedded base model and its adapters.")
cli_versions.add_to(adapters)
cli_import.add_to(adapters)
cli_advise.add_to(app)
cli_train.add_to(app)
cli_tune.add_to(app)
cli_jobs.add_to(jobs)
app.add_typer(adapters, name="adapters")
app.add_typer(jobs, name="jobs")
app.add_typer(demo_app, name="demo")

BENCHMARKS = Path(__file__).parent.parent / "benchmarks" / "peers.py"  # in a checkout only


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script. Always leaves by SystemExit."""
    try:
        app(args=arguments, prog_name="adapterd")
    except (AdapterdError, ServerError) as error:
        _fail(error.message, 1)
    except OSError as error:
        _fail(str(error), 1)
    except SettingsError as error:
        _fail(str(error), 2)


def _fail(message: str, status: int) -> None:
    print(f"adapterd: {message}", file=sys.stderr)
    raise SystemExit(status)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
) -> None:
    if version:
        print(f"adapterd {__version__}")
        raise typer.Exit()


@app.command(
    epilog="Every option is also a variable and a key of the TOML file: --max-rank is "
    "ADAPTERD_MAX_RANK and max_rank = 64. Flags win over variables, variables over the file. "
    "Sizes: 512MiB, 4GB.",
)
@takes_settings()
def serve(flags: dict[str, str]) -> None:
    """Serve a base model and its adapters until Ctrl-C or SIGTERM.

    Without --model it serves a small embedded base with adapters of its own:

        adapterd serve

        adapterd serve --model Qwen/Qwen3-0.6B --dtype bfloat16 --max-rank 32

        adapterd serve --model ./my-base --port 9000 --data-dir ./adapters
    """
    settings = load_settings(flags)
    # Its imports take seconds, and so do ours: they run side by side.
    with closing(start_engine()) as engine:
        gc.disable()  # what is imported stays; serve.py turns it on
        from server.serve import run

        raise typer.Exit(run(settings, engine))


@app.command(
    epilog="Every setting is read from flags, ADAPTERD_… variables and the TOML file, as by "
    "[bold]adapterd serve[/bold]: give both the same model, data folder, store and catalog.",
)
@takes_settings(
    "model",
    "served_model_name",
    "device",
    "data_dir",
    "store",
    "store_cache_bytes",
    "catalog",
    "max_resident_adapters",
    "slot_bytes",
    "max_rank",
    "max_upload_bytes",
    "threads",
    "log_level",
    "config",
)
def worker(
    flags: dict[str, str],
    niceness: Annotated[
        int, typer.Option("--nice", min=0, max=19, help="How much others come first: 19, all.")
    ] = 19,
    lease_seconds: Annotated[
        float,
        typer.Option(
            "--lease-seconds", min=1, help="How soon others take over from a worker that died."
        ),
    ] = 60.0,
    until_empty: Annotated[
        bool, typer.Option("--until-empty", help="End when no job waits.")
    ] = False,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher",
            metavar="NAME=MODEL",
            help="A larger model that jobs may name as their teacher: a folder or a hub id. "
            "Repeatable.",
        ),
    ] = None,
) -> None:
    """Train what clients ask a server for; any number of workers may run, anywhere.

    A server on the same data folder, or the same store and catalog, serves each adapter as soon as
    it is published:

        adapterd worker

        adapterd worker --data-dir ./adapters --threads 4

        adapterd worker --teacher big=./larger-model
    """
    settings = load_settings(flags)
    from server.work import run

    raise typer.Exit(
        run(
            settings,
            niceness=niceness,
            lease_s=lease_seconds,
            until_empty=until_empty,
            teachers=_teachers(teacher or []),
        )
    )


def _teachers(options: Sequence[str]) -> dict[str, str]:
    """Models by the names that jobs have for them. Raises SettingsError."""
    found: dict[str, str] = {}
    for option in options:
        name, _, model = option.partition("=")
        if not re.fullmatch(JOB_NAME, name) or not model:
            raise SettingsError(
                f"--teacher {option}: say NAME=MODEL, such as big=./folder; a name has small "
                "letters, digits, and . _ - after the first"
            )
        if name in found:
            raise SettingsError(f"--teacher {name} is given twice")
        found[name] = model
    return found


@app.command(
    hidden=not BENCHMARKS.is_file(),
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def bench(context: typer.Context) -> None:
    """Measure this engine beside its peers. Runs from a source checkout only."""
    if not BENCHMARKS.is_file():
        _fail("the benchmarks are not installed: run this in a source checkout", 2)
    command = [sys.executable, "-m", "benchmarks", *(context.args or ["all"])]
    raise typer.Exit(subprocess.run(command, cwd=BENCHMARKS.parent.parent).returncode)


@app.command()
def complete(
    prompt: Annotated[str, typer.Argument(help="What to ask.", show_default=False)],
    adapter: Annotated[
        str | None, typer.Option("--adapter", "-a", help="Adapter to ask. Default: the base.")
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw",
            help="As a user's message, or as text to continue. Default: chat if the base can.",
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 128,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0: the likeliest token, always the same answer.")
    ] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Makes a random answer repeatable.")] = None,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Ask the server and print the answer as it is generated.

    adapterd complete --adapter dates "on the third of May 2021"

    adapterd complete --raw --max-tokens 20 "Once upon a time"
    """
    options: dict[str, Any] = {"temperature": temperature}
    if seed is not None:
        options["seed"] = seed
    with ServerClient(server) as client:
        model = adapter or client.base_name()
        ask = Completion(prompt, model, chat=chat, max_tokens=max_tokens, options=options)
        for text in client.complete(ask):
            print(text, end="", flush=True)
    print()


@adapters.command()
def push(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder that PEFT saved, or a .zip or .tar.gz of it.", show_default=False
        ),
    ],
    name: Annotated[
        str, typer.Option("--name", "-n", help="Name that requests will use.", show_default=False)
    ],
    promote: Annotated[
        bool,
        typer.Option(
            "--promote/--no-promote",
            help="Whether the name means it from now on; if not, it is only kept as a version.",
        ),
    ] = True,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Upload an adapter; requests can name it at once.

    adapterd adapters push ./my-adapter --name my-adapter
    """
    paths = peft_files(source)
    with ServerClient(server) as client, ExitStack() as opened:
        progress = opened.enter_context(transfer_bar())
        total = sum(path.stat().st_size for path in paths)
        task = progress.add_task(f"uploading {name}", total=total)
        files = [opened.enter_context(path.open("rb")) for path in paths]
        counted = [progress.wrap_file(file, task_id=task) for file in files]
        named = [(path.name, file) for path, file in zip(paths, counted, strict=True)]
        new, adapter = client.push(name, named, promote=promote)
        current = adapter if new and promote else client.adapter(name)
    if as_json:
        print(json.dumps(adapter, indent=2))
        return
    state = "uploaded" if new else "already there, unchanged"
    print(f"{adapter['id']} {state}: version {adapter['version']}, {_digest(adapter)}, "
          f"rank {adapter['rank']} on {', '.join(adapter['target_modules'])}")  # fmt: skip
    if ignored := adapter.get("ignored_files"):
        print(f"not needed and left out: {', '.join(ignored)}")
    reference = adapter["id"]
    if current["version"] != adapter["version"]:
        print(f"{reference} still means version {current['version']}")
        reference = f"{reference}@{adapter['version']}"
    print(f'Try it: adapterd complete --adapter {reference} "…"')


@adapters.command("list")
def list_adapters(server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """List the server's adapters."""
    with ServerClient(server) as client:
        found = list(client.adapters())
    if as_json:
        print(json.dumps(found, indent=2))
        return
    table = Table("name", "version", "digest", "kind", "rank", "modules", "size", "where")
    for adapter in found:
        table.add_row(
            adapter["id"],
            str(adapter["version"]),
            _digest(adapter),
            adapter["kind"],
            str(adapter["rank"]),
            " ".join(adapter["target_modules"]),
            human_bytes(adapter["bytes"]),
            adapter["residency"],
        )
    print_table(table)


@adapters.command()
def show(name: Name, server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """Show what the server knows of one adapter."""
    with ServerClient(server) as client:
        adapter = client.adapter(name)
    if as_json:
        print(json.dumps(adapter, indent=2))
        return
    width = max(map(len, adapter))
    for key, value in adapter.items():
        print(f"{key:<{width}}  {value if isinstance(value, str) else json.dumps(value)}")


@adapters.command()
def pull(
    name: Name,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder, or FILE.zip, to write. Default: a folder NAME here."
        ),
    ] = None,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Download an adapter as a folder that PEFT's from_pretrained takes, or as a zip."""
    target = output or Path(name)
    if target.exists():
        raise ServerError(f"{target} exists already. Name another with --output.")
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=".pull-") as scratch:
        archive = Path(scratch, "adapter.zip")
        with ServerClient(server) as client, archive.open("wb") as stream:
            client.download(name, stream)
        if target.suffix == ".zip":
            archive.rename(target)
        else:
            folder = Path(scratch, "adapter")
            _unpack(archive, folder)
            folder.rename(target)
    print(f"{name} is in {target}")


@adapters.command()
def rm(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME[:TAG|@VERSION]",
            help="An adapter, or one of its aliases or versions.",
            show_default=False,
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also what aliases mean, and the aliases.")
    ] = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Delete an adapter with all its versions, one version of it, or one alias."""
    with ServerClient(server) as client:
        client.adapter(name)  # an unknown name is said before anything is asked
        if not yes:
            typer.confirm(f"Delete {name} from {client.url}?", abort=True)
        client.remove(name, force=force)
    print(f"{name} is deleted")


@demo_app.command("export")
def export_demo(
    destination: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to make.", show_default=False)
    ],
) -> None:
    """Write the embedded base and adapters as ordinary Hugging Face and PEFT folders."""
    from demo.export import export

    export(destination)
    print(f"{destination / 'base'} and {destination / 'adapters'} are written")


def _digest(adapter: dict[str, Any]) -> str:
    return adapter["digest"][:12]


def _unpack(archive: Path, folder: Path) -> None:
    """The archive's files, by their last name only: a server is not trusted with our paths."""
    folder.mkdir()
    with zipfile.ZipFile(archive) as packed:
        for member in packed.infolist():
            if member.is_dir():
                continue
            with (
                packed.open(member) as source,
                (folder / Path(member.filename).name).open("xb") as target,
            ):
                shutil.copyfileobj(source, target)

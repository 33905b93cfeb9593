"""Options and arguments that several `adapterd` commands share."""

from typing import Annotated

import typer

DEFAULT_SERVER = "http://127.0.0.1:8000"

Server = Annotated[
    str,
    typer.Option(
        "--server", envvar="ADAPTERD_SERVER", metavar="URL", help="The server to talk to."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON as the server gave it.")]
Name = Annotated[str, typer.Argument(help="The adapter's name.", show_default=False)]
Expected = Annotated[
    int | None,
    typer.Option(
        "--expect",
        min=0,
        metavar="N",
        help="Change it only if it means version N now (0: does not exist).",
    ),
]

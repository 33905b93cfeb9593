"""The options of `adapterd serve` and its kin, one per field of Settings: the two cannot differ.

Here: a command's signature made from the model. Values stay the text that was typed: Settings
parses flags, environment and TOML alike. Not here: any setting by name.
"""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from server.config import (
    Settings,
    about,
    flag_of,
    is_byte_size,
    is_repeatable,
    is_switch,
    off_flag_of,
)

Command = Callable[..., None]


def takes_settings(*names: str) -> Callable[[Command], Command]:
    """`command(flags, …)` as a function that typer reads an option per setting from.

    `names`: of the settings that are offered; none: all. What else the command takes, it keeps.
    """

    def wrap(command: Command) -> Command:
        own = [one for one in inspect.signature(command).parameters.values() if one.name != "flags"]
        offered = names or tuple(Settings.model_fields)

        def with_options(**options: Any) -> None:
            rest = {one.name: options.pop(one.name) for one in own}
            given = {name: value for name, value in options.items() if value not in (None, [])}
            command({name: _text(value) for name, value in given.items()}, **rest)

        parameters = [*own, *(setting_option(name) for name in offered)]
        parameters.sort(key=lambda one: one.kind)  # a signature has positional ones first
        with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_options.__name__, with_options.__doc__ = command.__name__, command.__doc__
        return with_options

    return wrap


def setting_option(name: str, panel: str | None = None) -> inspect.Parameter:
    """A parameter that typer reads the setting from, as text; None if it is not given.

    `panel`: its heading in --help; None: its group's.
    """
    field, told = Settings.model_fields[name], about(name)
    switch = is_switch(name)
    option = typer.Option(
        f"{flag_of(name)}/{off_flag_of(name)}" if switch else flag_of(name),
        help=f"{told.help} {_default(name, field)}".strip(),
        metavar="" if switch else _metavar(name, field),
        rich_help_panel=panel or told.group,
        show_default=False,  # ours is in the help text; what typer sees is None for all
    )
    kind = bool | None if switch else list[str] | None if is_repeatable(name) else str | None
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option]
    )


def _metavar(name: str, field: FieldInfo) -> str:
    """What kind of value is wanted, in a word: [auto|float32], BYTES, PATH, INTEGER, …"""
    if get_origin(field.annotation) is Literal:
        return f"[{'|'.join(get_args(field.annotation))}]"
    if is_byte_size(name):
        return "BYTES"
    if name.endswith("_seconds"):
        return "SECONDS"
    words = {"Path": "PATH", "int": "INTEGER"}
    return next((word for kind, word in words.items() if kind in str(field.annotation)), "TEXT")


def _default(name: str, field: FieldInfo) -> str:
    shown = default_text(name, field)
    return f"Default: {shown}." if shown else ""


def default_text(name: str, field: FieldInfo) -> str:
    """As a person would type it; empty where None is the default, and the help text tells."""
    value = field.get_default(call_default_factory=True)
    if value in (None, ()):
        return ""
    shown = human_bytes(value) if is_byte_size(name) else _text(value)
    return shown.replace(str(Path.home()), "~")


def _text(value: object) -> str:
    """As it is typed: true and false for a switch, as in the TOML file; several as in $PATH."""
    if isinstance(value, (list, tuple)):
        return os.pathsep.join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def human_bytes(count: int) -> str:
    """1073741824 → "1 GiB"; 1536 → "1.5 KiB"."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f} {unit}".replace(".0 ", " ")

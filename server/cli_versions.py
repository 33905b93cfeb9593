"""`adapterd adapters …`: versions, aliases and the store as a whole.

Here: what these commands take and print. Not here: HTTP (http_client.py), uploads (cli.py).
"""

import json
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from server.cli_options import DEFAULT_SERVER, AsJson, Expected, Name, Server
from server.cli_settings import human_bytes
from server.cli_terminal import print_table, time_text
from server.http_client import ServerClient, ServerError

Alias = Annotated[
    str, typer.Argument(metavar="NAME[:TAG]", help="An adapter's name, or one of its tags.",
                        show_default=False)
]  # fmt: skip
Version = Annotated[
    str, typer.Argument(help="A version's number, or digits of its digest.", show_default=False)
]


Reference = Annotated[
    str, typer.Argument(help="As a request may name it: sql, sql:prod, sql@3.", show_default=False)
]
Tier = Literal["slot", "host"]
PASSING = {"aliases", "versions", "created_at", "residency", "pinned", "object", "load_seconds"}


def add_to(adapters: typer.Typer) -> None:
    """Registers the commands."""
    for command in (
        versions,
        aliases,
        alias,
        canary,
        history,
        rollback,
        diff,
        prefetch,
        pin,
        unpin,
        gc,
        verify,
    ):
        adapters.command()(command)


def versions(name: Name, server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """List an adapter's versions, and which aliases mean them."""
    with ServerClient(server) as client:
        found, pointers = client.versions(name), client.aliases(name)
    if as_json:
        return print(json.dumps(found, indent=2))
    table = Table("version", "digest", "made", "rank", "size", "means it")
    for one in found:
        users = [
            pointer["id"] + ("" if pointer["version"] == one["version"] else " (canary)")
            for pointer in pointers
            if one["version"] in (pointer["version"], (pointer["canary"] or {}).get("version"))
        ]
        table.add_row(
            str(one["version"]),
            one["digest"][:12],
            time_text(one["created_at"]),
            str(one["rank"]),
            human_bytes(one["bytes"]),
            " ".join(users),
        )
    print_table(table)


def aliases(name: Name, server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """List an adapter's aliases and what they mean."""
    with ServerClient(server) as client:
        found = client.aliases(name)
    if as_json:
        return print(json.dumps(found, indent=2))
    table = Table("alias", "version", "digest", "canary")
    for one in found:
        table.add_row(one["id"], str(one["version"]), one["digest"][:12], _canary(one["canary"]))
    print_table(table)


def alias(
    name: Alias, version: Version, expected: Expected = None, server: Server = DEFAULT_SERVER
) -> None:
    """Make an alias mean a version; a new tag becomes an alias.

    adapterd adapters alias sql:prod 3 --expect 2
    """
    with ServerClient(server) as client:
        _say(client.move_alias(name, {"version": _version(version)}, expected))


def canary(
    name: Alias,
    version: Version,
    weight: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Its share of requests; 0 ends it, 1 gives it all."),
    ],
    expected: Expected = None,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Give a version a share of an alias's requests; one user always gets the same version.

    adapterd adapters canary sql:prod 4 --weight 0.05
    """
    with ServerClient(server) as client:
        now = client.alias(name)
        expected = now["version"] if expected is None else expected
        body: dict[str, Any] = {"version": now["version"]}
        if weight == 1:
            body = {"version": _version(version)}
        elif weight > 0:
            body["canary"] = {"version": _version(version), "weight": weight}
        _say(client.move_alias(name, body, expected))


def history(name: Alias, server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """List what an alias has meant, the newest first."""
    with ServerClient(server) as client:
        moves = client.history(name)
    if as_json:
        return print(json.dumps(moves, indent=2))
    table = Table("move", "when", "why", "version", "digest", "canary")
    for one in moves:
        table.add_row(
            str(one["move"]),
            time_text(one["moved_at"]),
            one["cause"],
            "removed" if one["version"] is None else str(one["version"]),
            (one["digest"] or "")[:12],
            _canary(one["canary"]),
        )
    print_table(table)


def rollback(name: Alias, expected: Expected = None, server: Server = DEFAULT_SERVER) -> None:
    """Make an alias mean what it meant before its latest move."""
    with ServerClient(server) as client:
        _say(client.roll_back(name, expected))


def diff(
    old: Annotated[str, typer.Argument(metavar="OLD", help="As a request may name it: sql@2.",
                                       show_default=False)],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The same: sql@3, sql:prod.",
                                       show_default=False)],
    prompt: Annotated[str | None, typer.Option(help="Also answer this with both.")] = None,
    server: Server = DEFAULT_SERVER,
) -> None:  # fmt: skip
    """Show in what two versions differ, and how each answers a prompt.

    adapterd adapters diff sql@2 sql@3 --prompt "List all users"
    """
    with ServerClient(server) as client:
        before, after = _flat(client.adapter(old)), _flat(client.adapter(new))
        compared = None if prompt is None else client.compare(new, old, prompt)
    table = Table("", old, new)
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            table.add_row(key, before.get(key, ""), after.get(key, ""))
    if table.row_count:
        print_table(table)
    else:
        print(f"{old} and {new} are the same")
    if compared is not None:
        for reference, side in ((old, "against"), (new, "adapter")):
            print(f"{reference}: {compared[side]['text']}")
        parted, found = compared["parts_at"], compared["kl_divergence"]
        where = "never part" if parted is None else f"part at token {parted['index']}"
        print(f"they {where}; divergence {found['nats']:.4g} nats at token {found['index']}")


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """The leaves of an adapter object by their path; what only says when and where is left out."""
    if isinstance(value, dict) and not path:
        value = {key: one for key, one in value.items() if key not in PASSING}
    pairs: Any = ()
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        pairs = enumerate(value)
    else:
        return {path: value if isinstance(value, str) else json.dumps(value)}
    leaves: dict[str, str] = {}
    for key, one in pairs:
        leaves |= _flat(one, f"{path}.{key}" if path else str(key))
    return leaves


def prefetch(
    name: Reference,
    to: Annotated[Tier, typer.Option(help="How near: into memory, or onto the device.")] = "slot",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Bring an adapter near before it is asked for."""
    with ServerClient(server) as client:
        found = client.prefetch(name, to)
    print(f"{name} is in the {found['residency']} tier, version {found['version']}")


def pin(
    name: Reference,
    ttl: Annotated[int | None, typer.Option(min=1, help="Seconds; for ever, if left out.")] = None,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Bring an adapter onto the device, and keep it there."""
    with ServerClient(server) as client:
        found = client.pin(name, ttl)
    print(f"{name} is pinned, version {found['version']}" + (f", for {ttl} s" if ttl else ""))


def unpin(name: Reference, server: Server = DEFAULT_SERVER) -> None:
    """Let a pinned adapter go when its place is needed."""
    with ServerClient(server) as client:
        client.unpin(name)
    print(f"{name} is not pinned")


def gc(server: Server = DEFAULT_SERVER) -> None:
    """Remove stored files that no version refers to, as a crash may leave."""
    with ServerClient(server) as client:
        removed = client.collect_garbage()
    print(f"{len(removed)} removed", *removed, sep="\n")


def verify(server: Server = DEFAULT_SERVER) -> None:
    """Read every stored version again and compare its digest. Exits with 1 if one is damaged."""
    with ServerClient(server) as client:
        found = client.verify()
    for fault in found["faults"]:
        print(f"{fault['digest']}: {fault['message']}")
    damaged = len(found["faults"])
    if damaged:
        raise ServerError(
            f"{damaged} of {found['checked']} versions are damaged; upload them again"
        )
    print(f"{found['checked']} versions, all whole")


def _version(given: str) -> int | str:
    return int(given) if given.isdecimal() and len(given) < 8 else given


def _say(found: dict[str, Any]) -> None:
    share = "" if found["canary"] is None else f", canary: {_canary(found['canary'])}"
    print(f"{found['id']} means version {found['version']}, {found['digest'][:12]}{share}")


def _canary(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    return f"{found['weight']:.1%} version {found['version']}, {found['digest'][:12]}"

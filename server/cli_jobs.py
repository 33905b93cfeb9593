"""`adapterd jobs …`: training jobs on a server, watched, steered and judged.

Here: what these commands take and print, and how a job's end is told. Not here: HTTP
(http_client.py), creating jobs (cli_train.py), the live picture (job_view.py).
"""

import json
import os
import tempfile
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from server.cli_advise import print_advice
from server.cli_options import DEFAULT_SERVER, AsJson, Server
from server.cli_terminal import print_table, time_text
from server.follow_job import follow
from server.http_client import ServerClient, ServerError
from server.job_report import reference_of, report_lines, score_table
from server.job_view import Job, job_view

JobId = Annotated[
    str, typer.Argument(metavar="JOB", help="A job's id, ftjob-….", show_default=False)
]
INTERRUPTED = 130  # the exit status of what Ctrl-C ended


def add_to(jobs: typer.Typer) -> None:
    """Registers the commands."""
    jobs.command("list")(list_jobs)
    jobs.command("follow")(follow_job)
    for command in (show, events, cancel, pause, resume, report):
        jobs.command()(command)


def list_jobs(
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 20,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """List training jobs, the newest first."""
    with ServerClient(server) as client:
        found = list(islice(client.jobs(), limit))
    if as_json:
        return print(json.dumps(found, indent=2))
    table = Table("job", "adapter", "status", "made", "step", "loss")
    for job in found:
        progress = job.get("progress") or {}
        loss = progress.get("loss")
        table.add_row(
            job["id"],
            job["adapterd"].get("name") or job["adapterd"].get("kind", ""),
            job["status"],
            time_text(job["created_at"]),
            f"{progress['step']}/{progress['steps']}" if progress else "",
            "" if loss is None else f"{loss:.4f}",
        )
    print_table(table)


def show(job: JobId, server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """Show what the server knows of one job."""
    with ServerClient(server) as client:
        found = client.job(job)
    if as_json:
        return print(json.dumps(found, indent=2))
    width = max(map(len, found))
    for key, value in found.items():
        print(f"{key:<{width}}  {value if isinstance(value, str) else json.dumps(value)}")


def events(
    job: JobId,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 1000,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """List what has happened to a job, the oldest first."""
    with ServerClient(server) as client:
        found = list(islice(client.job_events(job), limit))[::-1]
    if as_json:
        return print(json.dumps(found, indent=2))
    for event in found:
        level = "" if event["level"] == "info" else f"{event['level']}: "
        print(f"{time_text(event['created_at'])}  {level}{event['message']}")


def follow_job(job: JobId, server: Server = DEFAULT_SERVER) -> None:
    """Watch a job until it ends. Exits with 0 if it succeeded, and with 1 if not."""
    with ServerClient(server) as client:
        watch(client, client.job(job))


def cancel(job: JobId, server: Server = DEFAULT_SERVER) -> None:
    """End a job; nothing of it is published."""
    _change(server, job, "cancel")


def pause(job: JobId, server: Server = DEFAULT_SERVER) -> None:
    """Keep a job from going on until it is resumed; its last checkpoint is kept."""
    _change(server, job, "pause")


def resume(job: JobId, server: Server = DEFAULT_SERVER) -> None:
    """Let a paused job go on from its last checkpoint."""
    _change(server, job, "resume")


def _change(server: str, job_id: str, wish: Literal["cancel", "pause", "resume"]) -> None:
    with ServerClient(server) as client:
        job = client.change_job(job_id, wish)
    if job["status"] == "running" and wish != "resume":
        print(f"{job_id} is asked to {wish}; its worker does so after the step it is at")
    else:
        print(f"{job_id} is {job['status']}")


def report(
    job: JobId,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE.html|.svg|.json",
            help="Save the job's file of this type instead.",
        ),
    ] = None,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Print how a job's adapter did beside the base and the version before it.

    adapterd jobs report ftjob-… --output report.html
    """
    with ServerClient(server) as client:
        if output is not None:
            _save(client, client.job(job), output)
            return print(f"{output} is written")
        found = client.job_report(job)
    if as_json:
        return print(json.dumps(found, indent=2))
    _print_report(found)


def _print_report(report: dict[str, Any]) -> None:
    if report.get("kind") == "advice":
        print_advice(report)
        return
    print_table(score_table(report))
    print(*report_lines(report), sep="\n")


def _save(client: ServerClient, job: Job, target: Path) -> None:
    """The job's file of the same type. Raises ServerError if there is none, or `target` exists."""
    if target.exists():
        raise ServerError(f"{target} exists already. Name another with --output.")
    files = {client.file(one)["filename"]: one for one in job["result_files"]}
    fitting = sorted(
        (name for name in files if target.suffix and name.endswith(target.suffix)),
        key=lambda name: (not name.endswith(f".report{target.suffix}"), name),
    )
    if not fitting:
        has = f"it has {', '.join(sorted(files))}" if files else f"it is {job['status']}"
        raise ServerError(f"{job['id']} has no file that ends in {target.suffix!r}: {has}")
    with tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=".report-") as scratch:
        part = Path(scratch, "file")
        with part.open("wb") as stream:
            client.download_file(files[fitting[0]], stream)
        part.rename(target)


def watch(client: ServerClient, job: Job) -> None:
    """Follows a job to its end, and tells it. Raises ServerError unless it succeeded.

    Ctrl-C leaves the job running and exits.
    """
    try:
        with job_view() as view:
            job = follow(client, job, view)
    except KeyboardInterrupt:
        print(f"\n{job['id']} goes on without you.")
        print(f"Follow it: {hint(client, 'follow', job['id'])}")
        print(f"Cancel it: {hint(client, 'cancel', job['id'])}")
        raise typer.Exit(INTERRUPTED) from None
    except ServerError as error:
        again = f"Look again with: {hint(client, 'follow', job['id'])}"
        raise ServerError(f"{error.message} {again}", status=error.status) from None
    require_success(job)
    found = _report_of(client, job)
    reference = job["fine_tuned_model"]
    if found is not None:
        _print_report(found)
        reference = None if found.get("kind") == "advice" else reference_of(found)
    if reference is not None:
        print(f'Try it: adapterd complete --adapter {reference} "…"{_elsewhere(client)}')
    elif job["result_files"]:
        names = [client.file(one)["filename"] for one in job["result_files"]]
        print(f"It left {', '.join(names)}")
        print(f"Save one: {hint(client, 'report', job['id'])} --output FILE")


def require_success(job: Job) -> None:
    """Raises ServerError with the cause, if the job has ended in any other way."""
    if job["status"] == "cancelled":
        raise ServerError(f"{job['id']} was cancelled")
    if job["status"] == "failed":
        raise ServerError(f"{job['id']} failed: {job['error']['message']}")


def _report_of(client: ServerClient, job: Job) -> dict[str, Any] | None:
    """None if it cannot be had: the job has succeeded all the same."""
    try:
        return client.job_report(job["id"])
    except ServerError as error:
        print(error.message)
        return None


def hint(client: ServerClient, command: str, job_id: str) -> str:
    """The command as it works when typed here."""
    return f"adapterd jobs {command} {job_id}{_elsewhere(client)}"


def _elsewhere(client: ServerClient) -> str:
    usual = os.environ.get("ADAPTERD_SERVER") or DEFAULT_SERVER
    return "" if client.url == usual.rstrip("/") else f" --server {client.url}"

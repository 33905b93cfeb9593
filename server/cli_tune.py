"""`adapterd tune`: searches what suits some data, and publishes the best adapter that it finds.

Here: the command, what it asks of a tuner, how it tells the end. Not here: the search
(training/tune/), jobs on a server (tune_jobs.py), jobs and workers here (tune_here.py).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli_jobs import INTERRUPTED
from server.cli_options import DEFAULT_SERVER, AsJson, Server
from server.cli_train import Examples, Validation, upload, with_training_options
from server.config import Settings, SettingsError, flag_of, load_settings
from server.http_client import ServerClient
from server.training_options import TrainingOptions, job_request

if TYPE_CHECKING:  # it brings optuna: too slow for --help
    from optuna.study import Study
    from sqlalchemy import URL

    from training.tune.jobs import TrialJobs
    from training.tune.tuner import Row, Tuner

SETTINGS_HERE = (
    "model",
    "served_model_name",
    "data_dir",
    "store",
    "catalog",
    "max_rank",
    "device",
    "threads",
    "config",
)  # what `adapterd worker` calls the same
KEPT_APART = ("name", "publish", "gate")  # of a request: they say nothing of what is searched

Trials = Annotated[
    int, typer.Option("--trials", min=1, help="In the study, those of earlier runs counted.")
]
Parallel = Annotated[
    int, typer.Option("--parallel", "-j", min=1, help="Trials at once; with --local, workers.")
]
StudyName = Annotated[
    str | None,
    typer.Option("--study", help="Its name, to go on with it. Default: the adapter's."),
]
Storage = Annotated[
    str | None,
    typer.Option(
        "--storage", metavar="URL", show_default=False,
        help="Where studies are kept: sqlite:////PATH or postgresql://…. Default: the catalog if "
        "that is PostgreSQL, else tuning.sqlite3 in the data folder.",
    ),
]  # fmt: skip
Niceness = Annotated[
    int, typer.Option("--nice", min=0, max=19, help="With --local: how much others come first.")
]
Local = Annotated[bool, typer.Option("--local", help="Train here, with workers of its own.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What was typed, checked as far as it can be without a server or a store."""

    files: Mapping[str, Path]  # by field
    request: Mapping[str, Any]  # of a job, but for model and files
    study: str
    storage: str | None  # a database's URL
    trials: int
    parallel: int
    publish: bool


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command()(with_training_options(tune, SETTINGS_HERE))


def tune(
    context: typer.Context,
    data: Examples,
    options: TrainingOptions,
    flags: Mapping[str, str],
    validation: Validation = None,
    trials: Trials = 20,
    parallel: Parallel = 1,
    study: StudyName = None,
    storage: Storage = None,
    niceness: Niceness = 19,
    local: Local = False,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Search rank, targets, learning rate, dropout and weight decay, and publish the best adapter.

    What an option says stays as it is said; what none says is searched, by the loss on held-out
    examples. The first trial is what `adapterd train` would do. Trials are jobs; unpromising ones
    are cancelled. The same command again goes on with what was interrupted, by Ctrl-C or worse:

        adapterd tune dates.jsonl --name dates

        adapterd tune dates.jsonl --name dates --trials 40 --epochs 1 --local --parallel 2
    """
    wish = _wish(options, data, validation, study, storage, trials, parallel)
    _require_tuner()
    if not local:
        for name in flags:
            raise SettingsError(
                f"{flag_of(name)} is for --local: a server has its own. Leave it out, or add "
                "--local"
            )
        return _on_server(wish, server, as_json)
    source = context.get_parameter_source("server")  # the environment may name one all the same
    if source is not None and source.name == "COMMANDLINE":
        raise SettingsError("--server does not go with --local, which trains on this machine")
    settings = load_settings(flags)
    from server.tune_here import local_place

    with local_place(settings, flags, count=parallel, niceness=niceness) as place:
        _run(wish, settings, settings.base_name, place, place.upload, as_json)


def _on_server(wish: Wish, url: str, as_json: bool) -> None:
    from server.tune_jobs import ServerJobs

    with ServerClient(url) as client:
        base = client.base_name()
        jobs, keep = ServerJobs(client), partial(upload, client)
        _run(wish, load_settings({}), base, jobs, keep, as_json)


def _wish(
    options: TrainingOptions,
    data: Path,
    validation: Path | None,
    study: str | None,
    storage: str | None,
    trials: int,
    parallel: int,
) -> Wish:
    """Raises SettingsError."""
    name = study or options.name
    if name is None:
        raise SettingsError("name the adapter with --name; or with --no-publish the study: --study")
    if options.suffix is not None:
        raise SettingsError("--suffix is for names that a server makes: use --name")
    if validation is None and options.holdout == 0:
        raise SettingsError("--holdout 0 leaves nothing to compare trials by: add --validation")
    request = job_request(replace(options, seed=options.seed or 0, name=options.name or name))
    files = {"training_file": data}
    if validation is not None:
        files["validation_file"] = validation
    return Wish(
        files=files,
        request=request,
        study=name,
        storage=storage,
        trials=trials,
        parallel=parallel,
        publish=options.publish,
    )


def _require_tuner() -> None:
    """Raises SettingsError if the extra is not installed."""
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError as missing:
        raise SettingsError(
            f"tuning needs {missing.name}, which is not installed: pip install 'adapterd[train]'"
        ) from None


def _run(
    wish: Wish,
    settings: Settings,
    base: str,
    jobs: "TrialJobs",
    keep: Callable[[Path], str],
    as_json: bool,
) -> None:
    """Searches, publishes and tells. `keep` makes a file's id of its path."""
    from server.tune_view import tune_view
    from training.publishable import require_publishable
    from training.spec import JobRequest
    from training.tune.search_space import space_of
    from training.tune.study import Asked, open_study
    from training.tune.tuner import Search, Tuner

    probe = {"model": base, "training_file": "file", **wish.request}
    space_of(probe)
    require_publishable(JobRequest.model_validate(probe).adapterd)
    asked = Asked(
        base=base,
        request=_searched(wish.request),
        data={field: _digest(path) for field, path in wish.files.items()},
    )
    with open_study(wish.storage or _storage(settings), wish.study, asked) as study:
        files = _kept(study, wish.files, keep)
        search = Search({**wish.request, "model": base, **files}, wish.trials, wish.parallel)
        try:
            with tune_view(wish.trials, stderr=as_json) as view:
                tuner = Tuner(study, jobs, search, view)
                if tuner.is_finished():
                    view.say(f"the study {wish.study} has its {wish.trials} trials already")
                tuner.run()
                job = tuner.publish() if wish.publish else None
        except KeyboardInterrupt:
            print(f"\nthe study {wish.study} is kept: the same command goes on with it")
            raise typer.Exit(INTERRUPTED) from None
        _tell(wish.study, tuner, None if job is None else job.report, as_json)


def _searched(request: Mapping[str, Any]) -> dict[str, Any]:
    options = request.get("adapterd", {})
    kept = {name: one for name, one in options.items() if name not in KEPT_APART}
    return {**request, "adapterd": kept}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _kept(
    study: "Study", paths: Mapping[str, Path], keep: Callable[[Path], str]
) -> Mapping[str, str]:
    """The files' ids: those of the study's first run, or new ones."""
    known = study.user_attrs.get("files")
    if known is None:
        known = {field: keep(path) for field, path in paths.items()}
        study.set_user_attr("files", known)
    return known


def _storage(settings: Settings) -> "URL | str":
    from sqlalchemy import URL

    if settings.catalog is not None and settings.catalog.startswith("postgres"):
        return settings.catalog
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    return URL.create("sqlite", database=str(settings.data_dir / "tuning.sqlite3"))


def _tell(name: str, tuner: "Tuner", report: Mapping[str, Any] | None, as_json: bool) -> None:
    from server.job_report import reference_of
    from training.tune.search_space import DEFAULTS, words

    rows = tuner.rows()
    best = tuner.best()
    assert best is not None
    found = dict(report or {})
    reference = reference_of(found) if report else None
    if as_json:
        return print(json.dumps(_as_json(name, rows, best, found, reference), indent=2))
    defaults = next((row for row in rows if row.number == DEFAULTS), None)
    counts = Counter(row.state for row in rows)
    ends = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    print(f"{len(rows)} trials: {ends}")
    if gate := found.get("gate"):
        print(f"gate {'passed' if gate['passed'] else 'not passed'}: {'; '.join(gate['reasons'])}")
    than = "the defaults failed"
    if defaults is not None and defaults.state == "complete":
        than = f"the defaults' is {defaults.loss:.4f}"
    made = f"published as {reference}" if reference else "not published"
    print(f"best: {words(best.params)}: loss {best.loss:.4f}, {than}; {made}")


def _as_json(
    name: str,
    rows: "Sequence[Row]",
    best: "Row",
    report: Mapping[str, Any],
    reference: str | None,
) -> dict[str, Any]:
    from training.tune.search_space import values

    told = [
        {"number": row.number, "state": row.state, "loss": row.loss, "values": values(row.params)}
        | ({"error": row.error} if row.error else {})
        for row in rows
    ]
    return {
        "study": name,
        "best": told[best.number],
        "defaults": told[0],
        "adapter": reference,
        "version": report.get("adapter"),
        "gate": report.get("gate"),
        "trials": told,
    }

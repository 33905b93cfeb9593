"""A study that outlives its tuner: optuna's, in SQLite or PostgreSQL, with one tuner at a time.

Here: open_study, Asked, sampler. Not here: trials' jobs (tuner.py), what is searched.

No trial has a heartbeat, though optuna knows such: a trial is a job, which goes on whether its
tuner lives or not, so that the next tuner takes it up rather than fails it.
"""

import fcntl
import hashlib
import re
import sqlite3
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import SuccessiveHalvingPruner
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage
from optuna.study import Study
from sqlalchemy import URL, create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from adapters_store.databases import catalog_url, unreachable
from adapters_store.errors import Conflict, InvalidRequest

SCHEMA = "adapterd_tuning"
"""Of optuna's tables in PostgreSQL: both it and the catalog keep a table alembic_version."""

STARTUP = 6
"""Trials drawn at random, the defaults among them, before TPE has something to go by."""

HALVING = 2
"""Of the trials that reach an evaluation, the better 1 in so many goes on (ASHA's eta)."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_ASKED, _IDENTITY = "asked", "identity"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a study is about. Another question needs another study."""

    base: str
    request: Mapping[str, Any]  # as POST /v1/fine_tuning/jobs takes it, but for model and files
    data: Mapping[str, str]  # sha256 by field: training_file, validation_file


@contextmanager
def open_study(url: URL | str, name: str, asked: Asked) -> Iterator[Study]:
    """The study of this name, made if there is none; nobody else's while the context lasts.

    Raises Conflict (another tuner has it, or it is about something else), InvalidRequest,
    Unavailable, ValueError (a URL of neither database).
    """
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{name[:80]!r} is no name of a study: use 1 to 63 of a-z, 0-9, '.', '_' and '-', "
            "starting with a letter or digit"
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = catalog_url(url)
    sqlite = url.get_backend_name() == "sqlite"
    sole = _sole_on_sqlite if sqlite else _sole_on_postgresql
    with sole(url, name), ExitStack() as end:
        try:
            storage = _sqlite(url) if sqlite else _postgresql(url)
            end.callback(storage.engine.dispose)
            end.callback(storage.remove_session)
            study = optuna.create_study(
                study_name=name,
                storage=storage,
                direction="minimize",
                pruner=SuccessiveHalvingPruner(min_resource=1, reduction_factor=HALVING),
                load_if_exists=True,
            )
            _settle(study, asked)
        except SQLAlchemyError as away:
            raise unreachable(url, away) from away
        yield study


def identity(study: Study) -> str:
    """What tells the study's jobs from those of another one that had its name."""
    return study.user_attrs[_IDENTITY]


def sampler(seed: int, number: int) -> TPESampler:
    """For one trial: what it draws depends on the seed, its number and the trials before it.

    One sampler for a whole study would draw the same again in a tuner that goes on with it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(
            seed=(seed * 1_000_003 + number) % 2**32,
            n_startup_trials=STARTUP,
            multivariate=True,
            constant_liar=True,  # trials that run at once keep away from one another
        )


def _settle(study: Study, asked: Asked) -> None:
    known = study.user_attrs.get(_ASKED)
    if known is None:
        study.set_user_attr(_IDENTITY, uuid.uuid4().hex)
        study.set_user_attr(_ASKED, asdict(asked))
        return
    wanted = asdict(asked)
    for part in ("base", "data", "request"):
        if known[part] != wanted[part]:
            what = {"base": "base", "data": "data", "request": "options"}[part]
            raise Conflict(
                f"the study {study.study_name} is of other {what}: name another with --study"
                if part != "base"
                else f"the study {study.study_name} is of the base {known[part]}: name another "
                "with --study"
            )


class _Durable(sqlite3.Connection):
    """As the catalog's (adapters_store/database.py): no WAL, and what is committed stays."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for pragma in ("journal_mode=DELETE", "synchronous=EXTRA"):
            self.execute(f"PRAGMA {pragma}").close()


def _sqlite(url: URL) -> RDBStorage:
    shown = url.render_as_string(hide_password=False)
    return RDBStorage(shown, {"connect_args": {"factory": _Durable, "timeout": 10}})


@contextmanager
def _sole_on_sqlite(url: URL, name: str) -> Iterator[None]:
    """A lock that the system drops when its process ends, however that does."""
    assert url.database, "a study in memory is not resumed"
    path = Path(f"{url.database}.{name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _taken(name) from None
        yield


def _postgresql(url: URL) -> RDBStorage:
    options = f"{url.query.get('options', '')} -csearch_path={SCHEMA}".strip()
    shown = url.render_as_string(hide_password=False)
    return RDBStorage(
        shown, {"pool_pre_ping": True, "connect_args": {"options": options, "connect_timeout": 5}}
    )


@contextmanager
def _sole_on_postgresql(url: URL, name: str) -> Iterator[None]:
    """The same by an advisory lock, which ends with its connection; makes the schema."""
    try:
        engine = create_engine(
            url, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 5}
        )
    except ImportError:
        raise ValueError("a study in PostgreSQL needs its driver: adapterd[postgres]") from None
    key = int.from_bytes(hashlib.sha256(f"{SCHEMA}.{name}".encode()).digest()[:8], signed=True)
    with ExitStack() as end:
        end.callback(engine.dispose)
        try:
            connection = end.enter_context(engine.connect())
            lock = text("SELECT pg_try_advisory_lock(:key)")
            if not connection.execute(lock, {"key": key}).scalar():
                raise _taken(name)
            connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        except SQLAlchemyError as away:
            raise unreachable(url, away) from away
        yield


def _taken(name: str) -> Conflict:
    return Conflict(f"the study {name} has another tuner at work: wait for its end, or stop it")

"""A job's checkpoints: a row for each, its bytes beside the adapters' files.

Here: CheckpointShelf. Not here: what is in a checkpoint (loop.py), who may work on a job (jobs.py).

Bytes are put before their row is committed, so a checkpoint that has a row with a digest is whole;
a row is written under its worker's fence, so a late worker's never counts. Only the newest keeps
its bytes: it is what a job goes on from.
"""

import hashlib
import re
import shutil
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import Row, select

from adapters_store.database import Database
from adapters_store.errors import AdapterdError, InvalidRequest, StoreCorrupt
from adapters_store.objects import Objects
from adapters_store.schema import checkpoints, jobs
from training.jobs import ENDED, Lease, require, storable

_ID = re.compile(r"ftckpt-[0-9a-f]{24}")  # another may not even be text to the database


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    id: str
    job_id: str
    step: int
    metrics: Mapping[str, Any]  # as the trainer logged them last
    sha256: str | None  # of its bytes; None: no longer kept
    created_at: int  # Unix seconds


class CheckpointShelf:
    """Checkpoints of all jobs. Methods block; call them from threads."""

    def __init__(
        self,
        database: Database,
        objects: Objects,
        staging: Callable[[], AbstractContextManager[Path]],
    ) -> None:
        self._database = database
        self._objects = objects
        self._staging = staging

    def list(
        self, job_id: str, *, limit: int, after: str | None = None
    ) -> tuple[tuple[CheckpointRecord, ...], bool]:
        """Of one job, the latest step first, those before the checkpoint `after`; whether more.

        Raises InvalidRequest if the job has no checkpoint `after`.
        """
        mine = checkpoints.c.job_id == job_id
        query = select(checkpoints).where(mine).order_by(checkpoints.c.step.desc()).limit(limit + 1)
        with self._database.read() as connection:
            if after is not None:
                known = select(checkpoints).where(mine, checkpoints.c.id == after)
                last = connection.execute(known).first() if _ID.fullmatch(after) else None
                if last is None:
                    raise InvalidRequest("the job has no such checkpoint", param="after")
                query = query.where(checkpoints.c.step < last.step)
            found = tuple(_record(row) for row in connection.execute(query))
        return found[:limit], len(found) > limit

    def save(self, lease: Lease, folder: Path, *, step: int, metrics: Mapping[str, Any]) -> None:
        """Keeps a folder as the job's newest checkpoint, and no older one's bytes.

        Raises LeaseLost, Unavailable, OSError; nothing is changed then.
        """
        record = CheckpointRecord(
            f"ftckpt-{uuid.uuid4().hex[:24]}", lease.job.id, step, metrics, None, int(time.time())
        )
        with self._staging() as staging:
            archive = staging / "checkpoint.tar"
            with tarfile.open(archive, "w") as tar:
                tar.add(folder, arcname=".")
            with archive.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            self._objects.put(_key(record.id), archive)
        try:
            older = self._commit(lease, record, digest)
        except BaseException:
            with suppress(AdapterdError):
                self._objects.remove(_key(record.id))
            raise
        for one in older:
            self._objects.remove(_key(one))

    def _commit(self, lease: Lease, record: CheckpointRecord, digest: str) -> tuple[str, ...]:
        """The ids whose bytes are needed no more."""
        mine = checkpoints.c.job_id == record.job_id
        with self._database.write() as connection:
            require(connection, lease)
            # One that went on from an earlier step than the last saved: those steps are done again.
            kept = select(checkpoints.c.id).where(mine, checkpoints.c.sha256.is_not(None))
            older = tuple(connection.execute(kept).scalars())
            connection.execute(checkpoints.delete().where(mine, checkpoints.c.step >= record.step))
            connection.execute(checkpoints.update().where(mine).values(sha256=None))
            # Failures count while nothing is gained: a job that gets on is no hopeless one.
            connection.execute(jobs.update().where(jobs.c.id == record.job_id).values(failures=0))
            connection.execute(
                checkpoints.insert().values(
                    id=record.id,
                    job_id=record.job_id,
                    step=record.step,
                    metrics=storable(record.metrics),
                    sha256=digest,
                    created_at=record.created_at,
                )
            )
        return older

    def restore(self, job_id: str, folder: Path) -> int | None:
        """Unpacks the job's newest checkpoint into `folder`; its step, or None if there is none.

        Raises StoreCorrupt if its bytes are not those that were saved, Unavailable.
        """
        mine = (checkpoints.c.job_id == job_id) & checkpoints.c.sha256.is_not(None)
        with self._database.read() as connection:
            row = connection.execute(select(checkpoints).where(mine)).first()
        if row is None:
            return None
        with self._opened(row.id) as stored, tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(stored, copy)
            copy.seek(0)
            if hashlib.file_digest(copy, "sha256").hexdigest() != row.sha256:
                raise StoreCorrupt(f"the checkpoint {row.id} is damaged; cancel the job")
            copy.seek(0)
            with tarfile.open(fileobj=copy) as tar:
                tar.extractall(folder, filter="data")
        return row.step

    def discard_ended(self) -> None:
        """Removes the bytes of all checkpoints whose jobs have ended. Raises Unavailable."""
        ended = select(jobs.c.id).where(jobs.c.status.in_(ENDED))
        useless = checkpoints.c.sha256.is_not(None) & checkpoints.c.job_id.in_(ended)
        with self._database.write() as connection:
            gone = tuple(connection.execute(select(checkpoints.c.id).where(useless)).scalars())
            connection.execute(
                checkpoints.update().where(checkpoints.c.id.in_(gone)).values(sha256=None)
            )
        for one in gone:
            self._objects.remove(_key(one))

    def _opened(self, checkpoint_id: str) -> BinaryIO:
        try:
            return self._objects.open(_key(checkpoint_id))
        except FileNotFoundError:
            raise StoreCorrupt(
                f"the checkpoint {checkpoint_id} is in the catalog, but not in the store"
            ) from None


def _key(checkpoint_id: str) -> str:
    return f"checkpoints/{checkpoint_id}"


def _record(row: Row[Any]) -> CheckpointRecord:
    return CheckpointRecord(**row._mapping)

"""Which jobs may teach another, and what such a job left.

Here: teacher_job, unpacked. Not here: teaching (distillation.py); nothing that needs the trainers'
libraries, so that a server can tell at once that a job is none.
"""

import shutil
import zipfile
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from adapters_store.errors import AdapterNotFound, FileNotKept, InvalidRequest, JobNotFound
from adapters_store.store import AdapterStore
from training.jobs import JobBook, JobRecord

FIELD = "adapterd.teacher.job"


def teacher_job(book: JobBook, job_id: str, *, owner: str) -> JobRecord:
    """A job of `owner`, for the book's base, that ended well. Raises InvalidRequest otherwise.

    Another owner's, or another base's, is told as one that does not exist.
    """
    try:
        job = book.get(job_id)
    except JobNotFound:
        job = None
    if job is None or job.owner != owner:
        raise InvalidRequest(
            f"{FIELD}: no fine-tuning job of this base has the id {job_id}; "
            "GET /v1/fine_tuning/jobs lists them",
            param=FIELD,
        )
    if job.status != "succeeded":
        raise InvalidRequest(
            f"{FIELD}: {job_id} is {job.status}; a teacher is a job that has succeeded", param=FIELD
        )
    if job.spec.get("adapterd", {}).get("task") == "classification":
        raise InvalidRequest(
            f"{FIELD}: {job_id} learned classes, so it has nothing to say of next tokens",
            param=FIELD,
        )
    return job


def unpacked(store: AdapterStore, job: JobRecord, folder: Path) -> None:
    """Puts what the job trained into `folder`: its version's files, or its result file's.

    Raises InvalidRequest if it is kept no more, StoreCorrupt, Unavailable.
    """
    result = job.result or {}
    adapter = (result.get("report") or {}).get("adapter")
    with TemporaryFile() as packed:
        try:
            if adapter is not None:
                store.write_zip(adapter["digest"], packed)
            else:
                _copy_archive(store, job, packed)
        except (AdapterNotFound, FileNotKept):
            raise InvalidRequest(
                f"{FIELD}: what {job.id} trained has been deleted; train the teacher again",
                param=FIELD,
            ) from None
        packed.seek(0)
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(folder)


def _copy_archive(store: AdapterStore, job: JobRecord, out: BinaryIO) -> None:
    for file_id in (job.result or {}).get("result_files", ()):
        record, content = store.files.open(file_id)
        with content:
            if record.filename == f"{job.id}.adapter.zip":
                shutil.copyfileobj(content, out)
                return
    raise FileNotKept(f"{job.id} left no adapter")

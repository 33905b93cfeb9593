"""From a trained adapter's folder to a version, exactly once, and the job's end in one transaction.

Here: Outcome, publish_job, current_folder. Not here: training, scores.

The job's fence is checked within the transaction that makes the version: a worker that lost its
lease publishes nothing, however far it got.
"""

import shutil
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from adapters_store.catalog import VersionRecord
from adapters_store.content import AdapterContent, AdapterFacts, Check
from adapters_store.errors import AdapterNotFound
from adapters_store.members import UploadedFile
from adapters_store.store import AdapterStore
from training.jobs import Lease, succeed
from training.report import report_files
from training.results import ResultFiles


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to, and what is to be done with it."""

    folder: Path  # as PEFT saved it
    name: str | None  # None: no version is to be made
    promote: bool
    current: VersionRecord | None  # what the name meant when the scores were taken
    report: Mapping[str, Any]
    result: Mapping[str, Any]  # of the job, but for what is known only then


def current_folder(store: AdapterStore, name: str, folder: Path) -> VersionRecord | None:
    """Unpacks what the name means now into `folder`, as a PEFT folder; None if it means nothing.

    Raises StoreCorrupt, Unavailable.
    """
    try:
        current = store.get(name).current
        packed = BytesIO()
        store.write_zip(current.digest, packed)
    except AdapterNotFound:
        return None
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(folder)
    return current


def publish_job(store: AdapterStore, lease: Lease, outcome: Outcome, *, check: Check) -> None:
    """Keeps the results, makes the version if that is wanted, and ends the job well.

    Raises LeaseLost, AliasMoved (score again: the name means another version by now), and what
    AdapterStore.publish raises; then nothing is left but what was there before.
    """
    with ResultFiles(store, lease.job) as kept:
        for ending, content in report_files(outcome.report).items():
            kept.add(ending, content)
        if outcome.name is None:
            archive = shutil.make_archive(str(outcome.folder), "zip", outcome.folder)
            with open(archive, "rb") as packed:
                kept.add("adapter.zip", packed)
        result = {**outcome.result, "result_files": kept.ids}
        if outcome.name is None:
            with store.database.write() as connection:
                whole = result | {"report": dict(outcome.report)}
                succeed(connection, lease, whole, "The job is done; no version was made.")
        else:
            _publish_version(store, lease, outcome, result, check)


def _publish_version(
    store: AdapterStore, lease: Lease, outcome: Outcome, result: Mapping[str, Any], check: Check
) -> None:
    name = outcome.name
    assert name is not None
    brief = {key: outcome.report[key] for key in ("job", "scores", "forgetting", "gate", "plan")}

    def checked(content: AdapterContent) -> AdapterFacts:
        facts = check(content)
        return replace(facts, report={**facts.report, "training": brief})

    def end_job(connection: Connection, version: VersionRecord) -> None:
        reference = f"{name}@{version.number}"
        means = f"{name} means it now" if outcome.promote else f"{name} means what it did"
        adapter = {"name": name, "version": version.number, "digest": version.digest}
        succeed(
            connection,
            lease,
            {
                **result,
                "fine_tuned_model": reference,
                "report": {**outcome.report, "adapter": adapter},
            },
            f"Published as {reference} ({version.digest[:12]}); {means}.",
        )

    with ExitStack() as opened:
        files = [
            UploadedFile(path.name, opened.enter_context(path.open("rb")))
            for path in sorted(outcome.folder.iterdir())
        ]
        store.publish(
            name,
            files,
            check=checked,
            owner=lease.job.owner,
            promote=outcome.promote,
            expected=0 if outcome.current is None else outcome.current.number,
            within=end_job,
        )

"""The files that a job leaves, for clients to download: all of them, or none.

Here: ResultFiles. Not here: what is in them.
"""

from contextlib import suppress
from io import BytesIO
from typing import BinaryIO

from adapters_store.errors import AdapterdError
from adapters_store.store import AdapterStore
from training.jobs import JobRecord

RESULTS = "fine-tune-results"  # their purpose, as OpenAI calls it


class ResultFiles:
    """Within a `with`, whose failure removes what was added."""

    def __init__(self, store: AdapterStore, job: JobRecord) -> None:
        self.ids: list[str] = []
        self._shelf = store.files
        self._job = job

    def __enter__(self) -> "ResultFiles":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is None:
            return
        for file_id in self.ids:
            with suppress(AdapterdError):
                self._shelf.delete(file_id)

    def add(self, ending: str, content: bytes | BinaryIO) -> None:
        """Named by the job, with this ending. Raises Unavailable, OSError."""
        file = BytesIO(content) if isinstance(content, bytes) else content
        named, owner = f"{self._job.id}.{ending}", self._job.owner
        self.ids.append(self._shelf.add(file, filename=named, purpose=RESULTS, owner=owner).id)

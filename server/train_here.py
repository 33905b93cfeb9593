"""`adapterd train --local`: a job queued and worked on in this very process, without a server.

Here: run. Not here: the command (cli_train.py), what a job is.
"""

import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters_store.store import AdapterStore
from server.api.fine_tuning_format import event_object, job_object
from server.api.fine_tuning_request import Place, settled
from server.config import Settings
from server.open_store import blob_place, open_store
from server.work import prepare_training, workplace
from training.jobs import ENDED, JobBook, new_job_id
from training.spec import JobRequest
from training.uploads import keep_examples

if TYPE_CHECKING:  # needs the train extra
    from training.run import Workplace

LOOK_S = 0.5  # between two looks at how far it is
LEASE_S = 60.0

Json = dict[str, Any]
Show = Callable[[Json, Sequence[Json]], None]


def run(
    settings: Settings,
    request: Mapping[str, Any],
    training: Path,
    validation: Path | None,
    show: Show,
) -> Json:
    """The job's last object; `show` gets those on the way, each with the events since the last.

    `request`: the body of POST /v1/fine_tuning/jobs, without model and files. After Ctrl-C the job
    waits in the queue, with a checkpoint. Raises SettingsError, and AdapterdError naming the field.
    """
    prepare_training(settings, log_level="error")
    with closing(open_store(settings, blob_place(settings))) as store:
        place = workplace(settings, store, lease_s=LEASE_S)
        files = {"training_file": _kept(store, training)}
        if validation is not None:
            files["validation_file"] = _kept(store, validation)
        body = {**request, **files, "model": settings.base_name}
        tokenizer = place.base.tokenizer()
        book, job_id = JobBook(store.database, base=settings.base_name), new_job_id()
        spec = settled(
            Place(store, settings.base_name, tokenizer.chat_template is not None),
            JobRequest.model_validate(body),
            job_id,
        )
        book.create(spec, job_id=job_id)
        return _finished(place, book, job_id, show)


def _kept(store: AdapterStore, path: Path) -> str:
    """The id of the file in the store. Raises InvalidDataset."""
    with path.open("rb") as file:
        return keep_examples(store.files, file, path.name).id


def _finished(place: "Workplace", book: JobBook, job_id: str, show: Show) -> Json:
    from training.run import work_on

    stop = threading.Event()
    name = f"{socket.gethostname()}-{os.getpid()}"

    def work() -> None:
        while not stop.is_set() and book.get(job_id).status not in ENDED:
            lease = place.queue.claim(name, job_id=job_id)
            if lease is not None:
                work_on(place, lease, stop)
            else:  # another worker on this data was faster
                stop.wait(LOOK_S)

    thread = threading.Thread(target=work, name="training")
    thread.start()
    seen = 0
    try:
        while True:
            alive = thread.is_alive()  # looked at first: a job that has ended has all its events
            events, _ = book.events(job_id, limit=100)
            new = [event_object(one) for one in reversed(events) if one.id > seen]
            seen = max([seen, *(one.id for one in events)])
            job = job_object(book.get(job_id))
            show(job, new)
            if not alive:
                return job
            thread.join(LOOK_S)
    except KeyboardInterrupt:
        print("\nkeeping a checkpoint; the job stays in the queue", file=sys.stderr)
        stop.set()
        thread.join()
        raise

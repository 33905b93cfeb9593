"""Works on one job from its claim to its end.

Here: Workplace, work_on. Not here: which job (worker.py), each of the steps.
"""

import gc
import logging
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from transformers.utils import logging as transformers_logging

from adapters_store.content import Check
from adapters_store.errors import (
    AdapterdError,
    AliasMoved,
    Conflict,
    InvalidRequest,
    NotFound,
    TooLarge,
)
from adapters_store.store import AdapterStore
from training.advisor.job import advise_job
from training.advisor.request import ADVISE
from training.base import BaseFolder
from training.checkpoints import CheckpointShelf
from training.distillation import Teacher, open_teacher
from training.gate import Verdict, judge
from training.heartbeat import Heartbeat
from training.jobs import JobQueue, Lease, LeaseLost
from training.loop import Curves, Progress, train
from training.methods.trainable import attach, save, saved_rank
from training.plan import Plan, settle
from training.publish import Outcome, current_folder, publish_job
from training.spec import JobRequest
from training.tasks import Given, Task, Trial, task_of
from training.trial import Comparison
from training.watch import JobStopped, JobWatch

logger = logging.getLogger(__name__)

ASKED = (InvalidRequest, Conflict, NotFound, TooLarge)
"""Faults of what was asked: trying again would end alike."""

MAX_CAUSE = 2000  # characters of what an unforeseen failure says

RESCORED = 5
"""So often may a name move between its version's scores and its move, before the job gives up."""


@dataclass(frozen=True, slots=True)
class Workplace:
    """What every job is worked on with."""

    store: AdapterStore
    base: BaseFolder
    check: Check  # whether servers would take an adapter
    excess: Callable[[int], str | None]  # what is wrong with a rank that none would; None: nothing
    queue: JobQueue
    shelf: CheckpointShelf
    teachers: Mapping[str, Path] = field(default_factory=dict)  # larger models, by their names


def work_on(place: Workplace, lease: Lease, stop: threading.Event) -> None:
    """Ends with the job over, failed once, given back, or lost to another worker.

    `stop` asks for it to be given back soon, with a checkpoint. Raises Unavailable if not even the
    job's failure could be told.
    """
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    queue = place.queue
    try:
        _attempt(place, lease, stop)
    except LeaseLost as lost:
        logger.warning("%s: nothing of this worker's counts", lost)
    except JobStopped:
        with suppress(LeaseLost):
            queue.heed(lease)
    except AdapterdError as fault:
        with suppress(LeaseLost):
            queue.fail(lease, fault.message, final=isinstance(fault, ASKED))
    except Exception as fault:
        logger.exception("%s failed", lease.job.id)
        with suppress(LeaseLost):
            queue.fail(lease, f"{type(fault).__name__}: {fault}"[:MAX_CAUSE])
    finally:
        gc.collect()  # a failed run's model is in cycles with its traceback
    place.shelf.discard_ended()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the trainers' libraries warn each other of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message="Position ids are not supported")
        yield


def _attempt(place: Workplace, lease: Lease, stop: threading.Event) -> None:
    with (
        _quiet(),
        Heartbeat(place.queue, lease) as heart,
        tempfile.TemporaryDirectory(prefix="adapterd-job-") as scratch,
    ):
        if lease.job.spec.get("kind") == ADVISE:
            advise_job(place.store, place.base, place.queue, lease, heart, stop)
            return
        _Run(place, lease, heart, stop, Path(scratch)).run()


class _Run:
    """One attempt at a job."""

    def __init__(
        self,
        place: Workplace,
        lease: Lease,
        heart: Heartbeat,
        stop: threading.Event,
        scratch: Path,
    ) -> None:
        self._place = place
        self._lease = lease
        self._heart = heart
        self._stop = stop
        self._scratch = scratch
        self._request = JobRequest.model_validate(lease.job.spec)
        self._tokenizer = place.base.tokenizer()

    def run(self) -> None:
        began = time.monotonic()
        options = self._request.adapterd
        shape = self._place.base.shape()
        longest = min(options.max_tokens or shape.max_tokens, shape.max_tokens)
        task = self._task(longest)
        rows, held_out = task.rows()
        self._note_rows(len(rows), 0 if held_out is None else len(held_out))
        seed = self._request.seed or 0
        plan = settle(
            self._request, seed=seed, rows=len(rows), base=shape, tokenizer=self._tokenizer
        )
        self._check_rank(plan)
        model = task.model(plan)
        trial = task.trial(model, held_out)
        folder = self._scratch / "adapter"
        told = self._trained(task, model, plan, rows, held_out, folder)
        del model
        gc.collect()  # trainers are in cycles with their models, whose memory is wanted
        self._heart.check()
        for attempt in range(1, RESCORED + 1):
            outcome = self._outcome(plan, told, folder, trial, time.monotonic() - began)
            self._leave_if_asked()
            try:
                publish_job(self._place.store, self._lease, outcome, check=self._place.check)
            except AliasMoved:
                if attempt == RESCORED:
                    raise
                self._note(f"{outcome.name} was moved meanwhile: its version is scored again.")
            else:
                return

    def _task(self, longest: int) -> Task:
        given = Given(
            self._request,
            self._place.base,
            self._tokenizer,
            self._place.store,
            longest,
            self._scratch,
        )
        return task_of(given)

    def _note_rows(self, rows: int, held_out: int) -> None:
        held = "to evaluate on" if self._request.validation_file else "held out to evaluate on"
        self._note(f"{rows} examples to train on, {held_out} {held}.")

    def _check_rank(self, plan: Plan) -> None:
        """Before an hour of training, not after it. Raises InvalidRequest."""
        if not self._request.adapterd.publish:
            return
        rank = saved_rank(plan.adapter)
        if (wrong := self._place.excess(rank)) is not None:
            raise InvalidRequest(
                f"adapterd.peft.rank: the adapter would have rank {rank}, {wrong}",
                param="adapterd.peft.rank",
            )

    def _leave_if_asked(self) -> None:
        self._heart.check()
        if self._heart.wish == "cancel":
            raise JobStopped

    def _trained(
        self,
        task: Task,
        model: Any,
        plan: Plan,
        rows: Dataset,
        held_out: Dataset | None,
        folder: Path,
    ) -> "_Trained":
        """Trains, from the job's last checkpoint if it has one, and saves into `folder`."""
        teacher = self._teacher(plan)
        attached = attach(
            model,
            plan.adapter,
            seed=plan.seed,
            total_steps=plan.steps,
            batches=lambda: task.batches(rows, plan),
        )
        self._note(
            f"{attached.parameters:,} of {attached.total:,} parameters are trained, by "
            f"{plan.adapter.method} of rank {plan.adapter.rank}, in {plan.steps} steps of "
            f"{plan.batch_size} examples at a rate of {plan.learning_rate:.2g}."
        )
        checkpoint = self._scratch / "checkpoint"
        step = self._place.shelf.restore(self._lease.job.id, checkpoint)
        if step is not None:
            self._note(f"Going on from step {step}.")
        watch = JobWatch(
            self._place.queue,
            self._place.shelf,
            self._lease,
            self._heart,
            self._stop,
            steps=plan.steps,
        )
        curves, progress = train(
            attached,
            self._tokenizer,
            plan,
            rows,
            held_out,
            folder=self._scratch / "trainer",
            watch=watch,
            checkpoint=None if step is None else checkpoint,
            teacher=teacher,
        )
        save(attached, folder, base_name=self._place.base.name)
        task.add_files(folder)
        return _Trained(curves, progress, attached.parameters, attached.total)

    def _teacher(self, plan: Plan) -> Teacher | None:
        if plan.teacher is None:
            return None
        teacher = open_teacher(
            plan.teacher,
            store=self._place.store,
            base=self._place.base,
            tokenizer=self._tokenizer,
            named=self._place.teachers,
            owner=self._lease.job.owner,
            folder=self._scratch / "teacher",
        )
        self._note(
            f"{plan.teacher.job or plan.teacher.name} teaches, with {teacher.bytes / 1e6:,.0f} MB "
            "of weights beside the student's."
        )
        return teacher

    def _outcome(
        self,
        plan: Plan,
        told: "_Trained",
        folder: Path,
        trial: Trial,
        seconds: float,
    ) -> Outcome:
        """Scores the adapter beside what is served, and decides what becomes of it."""
        options = self._request.adapterd
        assert options.name is not None, "the API settles it"
        current, served = None, self._scratch / f"current-{time.monotonic_ns()}"
        if options.publish:
            current = current_folder(self._place.store, options.name, served)
        scores = trial(folder, None if current is None else served)
        verdict = self._verdict(scores)
        passed = verdict is None or verdict.passed
        # A name's first version is what it means, whatever is wished: so a failed one is not made.
        published = options.publish and (passed or current is not None)
        return Outcome(
            folder=folder,
            name=options.name if published else None,
            promote=passed,
            current=current,
            report=self._report(plan, told, scores, verdict, seconds),
            result={
                "hyperparameters": {
                    "n_epochs": plan.epochs,
                    "batch_size": plan.batch_size,
                    "learning_rate_multiplier": self._multiplier(),
                },
                "trained_tokens": told.progress.tokens,
            },
        )

    def _multiplier(self) -> float:
        asked = self._request.hyper.learning_rate_multiplier
        return 1.0 if asked == "auto" else asked

    def _verdict(self, scores: Comparison) -> Verdict | None:
        gate = self._request.adapterd.gate
        if gate is None:
            return None
        verdict = judge(
            gate,
            new=scores.new,
            base=scores.base,
            current=scores.current,
            forgetting=scores.forgetting,
        )
        told = "The gate is passed" if verdict.passed else "The gate is not passed, the name stays"
        self._place.queue.note(
            self._lease,
            f"{told}: {'; '.join(verdict.reasons)}.",
            level="info" if verdict.passed else "warn",
        )
        return verdict

    def _report(
        self,
        plan: Plan,
        told: "_Trained",
        scores: Comparison,
        verdict: Verdict | None,
        seconds: float,
    ) -> dict[str, Any]:
        return {
            "job": self._lease.job.id,
            "adapter": None,
            "plan": asdict(plan),
            "trained_parameters": told.parameters,
            "total_parameters": told.total,
            "trained_tokens": told.progress.tokens,
            "seconds": round(seconds, 1),
            "scores": scores.as_json(),
            "forgetting": scores.forgetting,
            "gate": None if verdict is None else verdict.as_json(),
            "curves": {"train": told.curves.train, "eval": told.curves.eval},
        }

    def _note(self, message: str) -> None:
        self._place.queue.note(self._lease, message)


@dataclass(frozen=True, slots=True)
class _Trained:
    curves: Curves
    progress: Progress
    parameters: int
    total: int

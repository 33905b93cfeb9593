"""Runs a study: asks optuna for trials, makes each a job, prunes, and has the best one published.

Here: Tuner, Search, Row. Not here: optuna's settings (study.py), what is searched
(search_space.py), where jobs are (jobs.py), how it looks.

Nothing that matters is in this process alone: a trial's values and losses are in the study, its
job is found by its metadata. So kill -9 loses nothing, and the next tuner goes on.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from adapters_store.errors import InvalidRequest
from training.tune.jobs import TrialJob, TrialJobs
from training.tune.search_space import (
    DEFAULTS,
    EVALS,
    Params,
    published_body,
    space_of,
    trial_body,
)
from training.tune.study import identity, sampler

POLL_S = 1.0  # between two looks at the running trials
HOPELESS = 3
"""So many failed trials before any has gone well, and it is not their values that are at fault."""

_JOB, _PRUNED, _ERROR, _PUBLISHED = "job", "pruned", "error", "published"
_OVER = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True, slots=True)
class Row:
    """A trial, as it is shown."""

    number: int
    params: Params
    state: str  # "running", "complete", "pruned", "failed"
    loss: float | None  # the last one known
    step: int = 0
    steps: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Search:
    """What is asked of a tuner."""

    request: Mapping[str, Any]  # of every job: model, files, seed and name settled
    trials: int  # in the study, those before this tuner counted
    parallel: int  # at a time


class View(Protocol):
    """Who is told how it goes."""

    def show(self, rows: Sequence[Row]) -> None: ...

    def say(self, message: str) -> None: ...


class Tuner:
    """The study's one tuner."""

    def __init__(self, study: Study, jobs: TrialJobs, search: Search, view: View) -> None:
        """Raises InvalidRequest if the request leaves nothing to search."""
        self._study = study
        self._jobs = jobs
        self._search = search
        self._view = view
        self._request = dict(search.request)
        self._space = space_of(self._request)
        self._running: dict[int, Trial] = {}
        self._seen: dict[int, TrialJob] = {}
        self._worked_at = time.monotonic()  # when a job had a worker last

    def run(self) -> None:
        """Until the study has as many trials as were asked for. Raises InvalidRequest."""
        self._adopt()
        while True:
            while len(self._running) < self._search.parallel and self._left():
                self._begin()
            self._view.show(self.rows())
            if not self._running:
                break
            self._wait()
            for trial in list(self._running.values()):
                self._look(trial)
        if self.best() is None:
            raise InvalidRequest(f"no trial went well: {self._last_error()}")

    def publish(self) -> TrialJob:
        """Runs the best trial again, as a job that publishes. Raises InvalidRequest.

        The same seed makes the same adapter, and its job the same report, gate and end as any
        other's: what is published is what was measured as it is published. Once published, that
        job is returned again.
        """
        best = self.best()
        assert best is not None
        body = published_body(self._request, best.number, best.params)
        name = body["adapterd"]["name"]
        body["metadata"] = self._metadata(publishes=str(best.number), name=name)
        job_id = self._jobs.ensure(body, again=True)
        known = self._study.user_attrs.get(_PUBLISHED)
        if known != {"trial": best.number, "job": job_id}:
            self._view.say(f"trial {best.number} is run again, to be published")
            self._study.set_user_attr(_PUBLISHED, {"trial": best.number, "job": job_id})
        while True:
            job = self._jobs.look(job_id)
            if job.status == "succeeded":
                return job
            if job.status in ("failed", "cancelled"):
                raise InvalidRequest(f"{job_id}, which was to publish, {_told(job)}")
            self._note_worker(job)
            self._wait()

    def rows(self) -> list[Row]:
        """Every trial that has begun, by number."""
        return [self._row(one) for one in self._begun()]

    def best(self) -> Row | None:
        """The trial with the lowest loss, if one was trained to its end."""
        done = [row for row in self.rows() if row.state == "complete" and row.loss is not None]
        return min(done, key=lambda row: row.loss or 0.0, default=None)

    def is_finished(self) -> bool:
        """Whether `run` has nothing to do."""
        begun = self._begun()
        return len(begun) >= self._search.trials and all(one.state in _OVER for one in begun)

    def _begun(self) -> list[FrozenTrial]:
        trials = self._study.get_trials(deepcopy=False)
        return [one for one in trials if one.state != TrialState.WAITING]

    def _note_worker(self, job: TrialJob) -> None:
        if job.status != "queued":
            self._worked_at = time.monotonic()

    def _wait(self) -> None:
        if said := self._jobs.tend(time.monotonic() - self._worked_at):
            self._view.say(said)
        time.sleep(POLL_S)

    def _left(self) -> bool:
        return len(self._begun()) < self._search.trials

    def _adopt(self) -> None:
        """Takes up what an earlier tuner left, and makes the study begin with the defaults."""
        if not self._study.get_trials(deepcopy=False):
            self._study.enqueue_trial(dict(self._space.defaults))
        left = [one for one in self._begun() if one.state == TrialState.RUNNING]
        for one in left:
            self._study.sampler = sampler(self._request["seed"], one.number)
            self._start(Trial(self._study, one._trial_id))  # a Trial is made by no other way
        if left:
            numbers = ", ".join(str(one.number) for one in left)
            self._view.say(f"going on with trial{'s' * (len(left) > 1)} {numbers}")

    def _begin(self) -> None:
        number = len(self._begun())
        self._study.sampler = sampler(self._request["seed"], number)
        self._start(self._study.ask())

    def _start(self, trial: Trial) -> None:
        params = self._space.suggest(trial)
        body = trial_body(self._request, trial.number, params)
        body["metadata"] = self._metadata(trial=str(trial.number))
        trial.set_user_attr(_JOB, self._jobs.ensure(body))
        self._running[trial.number] = trial

    def _metadata(self, **more: str) -> dict[str, str]:
        return {"study": self._study.study_name, "study_id": identity(self._study), **more}

    def _look(self, trial: Trial) -> None:
        job = self._jobs.look(trial.user_attrs[_JOB])
        self._seen[trial.number] = job
        self._note_worker(job)
        unpromising = self._reported(trial, job)
        if _PRUNED in trial.user_attrs:  # by a tuner that was killed before it could say so
            unpromising = True
        if job.status == "succeeded":
            self._end(trial, job)
        elif job.status in ("failed", "cancelled") and not unpromising:
            self._fail(trial, _told(job))
        elif unpromising:
            trial.set_user_attr(_PRUNED, True)
            self._jobs.cancel(job.id)
            self._tell(trial, TrialState.PRUNED)

    def _reported(self, trial: Trial, job: TrialJob) -> bool:
        """Tells the study of new losses; whether the trial should be given up for them.

        The last evaluation comes at the run's end, when nothing is saved any more, and what the
        defaults come to is to be known.
        """
        known = self._frozen(trial).intermediate_values
        give_up = False
        for number, loss in enumerate(job.losses, 1):
            if number in known:
                continue
            if loss is None:
                give_up = True
                break
            trial.report(loss, number)
            # Asked of every trial: the others are compared with what it came to.
            give_up |= trial.should_prune() and number < EVALS
        return give_up and trial.number != DEFAULTS

    def _end(self, trial: Trial, job: TrialJob) -> None:
        if job.loss is None or not math.isfinite(job.loss):
            self._fail(trial, f"{job.id} measured no loss: was anything held out?")
        else:
            self._tell(trial, TrialState.COMPLETE, job.loss)

    def _fail(self, trial: Trial, error: str) -> None:
        """Raises InvalidRequest once nothing but failures came."""
        trial.set_user_attr(_ERROR, error)
        self._tell(trial, TrialState.FAIL)
        states = [one.state for one in self._begun()]
        if states.count(TrialState.FAIL) >= HOPELESS and TrialState.COMPLETE not in states:
            for left in self._running.values():
                self._jobs.cancel(left.user_attrs[_JOB])
            raise InvalidRequest(f"{HOPELESS} trials failed: {error}")

    def _tell(self, trial: Trial, state: TrialState, loss: float | None = None) -> None:
        self._study.tell(trial, values=loss, state=state)
        del self._running[trial.number]

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return next(one for one in self._begun() if one.number == trial.number)

    def _row(self, one: FrozenTrial) -> Row:
        states = {TrialState.FAIL: "failed"}
        seen = self._seen.get(one.number)
        last = max(one.intermediate_values, default=None)
        loss = one.value if one.state == TrialState.COMPLETE else None
        if loss is None and last is not None:
            loss = one.intermediate_values[last]
        return Row(
            number=one.number,
            params=one.params,
            state=states.get(one.state, one.state.name.lower()),
            loss=loss,
            step=seen.step if seen else 0,
            steps=seen.steps if seen else 0,
            error=one.user_attrs.get(_ERROR),
        )

    def _last_error(self) -> str:
        errors = [row.error for row in self.rows() if row.error]
        return errors[-1] if errors else "all were given up"


def _told(job: TrialJob) -> str:
    return f"failed: {job.error}" if job.status == "failed" else "was cancelled"

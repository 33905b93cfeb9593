"""Makes the whole demo from scratch: `python -m demo.make`.

Here: the order of the stages, which are done, the log and the progress bar. Not here: the stages.
Every stage leaves its result in the work folder under its own name, moved there when complete, so
a run that is cut off goes on where it was, and a finished stage is not run again.
"""

import argparse
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

# Idle threads that spin are ruinous on a machine that does anything else; read when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import transformers
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo.adapters import (
    PLANS,
    AdapterJob,
    AdapterPlan,
    save_adapter,
    train_adapter,
)
from demo.evaluate import evaluate, heldout_examples, load_artefacts
from demo.pretrain import PretrainPlan, pretrain, save_base
from demo.report import stage_seconds, write_report
from demo.tasks import TASKS
from demo.tokenizer import learn_tokenizer, save_tokenizer, tokenizer_texts

HERE = Path(__file__).parent
log = logging.getLogger("demo.make")


@dataclass(frozen=True, slots=True)
class MakePlan:
    """One run: where it writes and how much it does."""

    out: Path  # receives base/, adapters/, RESULTS.md beside it and train.log
    work: Path
    seed: int
    threads: int
    tokenizer_documents: int
    pretrain: PretrainPlan
    adapters: dict[str, AdapterPlan]
    heldout: int  # held-out examples per task


def make(plan: MakePlan) -> None:
    """Runs every stage that is not done yet, then copies the results to `plan.out`."""
    plan.work.mkdir(parents=True, exist_ok=True)
    _log_to(plan.work / "train.log")
    torch.set_num_threads(plan.threads)
    log.info(
        "start: seed %d, %d cores, %d threads, %s, torch %s, transformers %s",
        *(plan.seed, os.cpu_count(), plan.threads, platform.machine()),
        *(torch.__version__, transformers.__version__),
    )
    began = time.monotonic()
    with _progress() as progress:
        _stage(plan, "tokenizer", lambda folder: _make_tokenizer(plan, folder))
        _stage(plan, "base", lambda folder: _make_base(plan, folder, progress))
        _make_adapters(plan, progress)
        _stage(plan, "results", lambda folder: _make_results(plan, folder, progress))
    log.info("done in %.1f minutes", (time.monotonic() - began) / 60)
    _publish(plan)


def _stage(plan: MakePlan, name: str, run: Callable[[Path], None]) -> None:
    """Runs a stage into a folder of its own unless that folder is there already."""
    done = plan.work / name
    if done.exists():
        log.info("%s: done before", name)
        return
    partial = plan.work / f"{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    began = time.monotonic()
    run(partial)
    os.replace(partial, done)
    log.info("%s: %.0f s", name, time.monotonic() - began)


def _make_tokenizer(plan: MakePlan, folder: Path) -> None:
    tokenizer = learn_tokenizer(tokenizer_texts(plan.seed, plan.tokenizer_documents))
    save_tokenizer(tokenizer, folder)
    log.info("tokenizer: %d tokens", len(tokenizer))


def _make_base(plan: MakePlan, folder: Path, progress: Progress) -> None:
    tokenizer = AutoTokenizer.from_pretrained(plan.work / "tokenizer", local_files_only=True)
    bar = progress.add_task("base", total=plan.pretrain.steps)
    logged = _loss_logger("base", plan.pretrain.steps)

    def step_done(step: int, loss: float) -> None:
        progress.update(bar, completed=step)
        logged(step, loss)

    model = pretrain(tokenizer, plan.pretrain, plan.work, step_done)
    parameters = sum(p.numel() for p in model.parameters())
    tokens = plan.pretrain.steps * plan.pretrain.rows * plan.pretrain.row_tokens
    log.info("base: %d parameters, %d tokens read", parameters, tokens)
    save_base(model, tokenizer, folder)


def _make_adapters(plan: MakePlan, progress: Progress) -> None:
    """The adapters, each in a process with one thread, as many at a time as threads are given."""
    bar = progress.add_task("adapters", total=len(plan.adapters))
    with ProcessPoolExecutor(plan.threads, mp_context=get_context("spawn")) as pool:
        for _ in pool.map(_make_adapter, [(plan, name) for name in plan.adapters]):
            progress.advance(bar)


def _make_adapter(job: tuple[MakePlan, str]) -> None:
    plan, name = job
    torch.set_num_threads(1)
    _log_to(plan.work / "train.log")
    _stage(plan, f"adapter-{name}", lambda folder: _train_and_save(plan, name, folder))


def _train_and_save(plan: MakePlan, name: str, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(plan.work / "base", local_files_only=True)
    base = AutoModelForCausalLM.from_pretrained(
        plan.work / "base", dtype=torch.float32, local_files_only=True
    )
    adapter = plan.adapters[name]
    job = AdapterJob(
        task=next(task for task in TASKS if task.name == name),
        plan=adapter,
        seed=plan.seed,
        checkpoint=plan.work / f"adapter-{name}.safetensors",
        progress=_loss_logger(name, adapter.steps),
    )
    save_adapter(train_adapter(base, tokenizer, job), folder)


def _make_results(plan: MakePlan, folder: Path, progress: Progress) -> None:
    """Puts base and adapters together, evaluates them, writes the report."""
    shutil.copytree(plan.work / "base", folder / "base")
    for name in plan.adapters:
        shutil.copytree(plan.work / f"adapter-{name}", folder / "adapters" / name)
    model, tokenizer = load_artefacts(folder)
    examples = heldout_examples(plan.heldout, plan.seed)
    bar = progress.add_task("evaluation", total=(len(examples) + 1) * len(examples))
    scores = evaluate(model, tokenizer, examples, lambda: progress.advance(bar))
    for name, row in scores.items():
        log.info("held-out, %s: %s", name, ", ".join(f"{t} {s:.3f}" for t, s in row.items()))
    seconds = stage_seconds(plan.work / "train.log")
    write_report(folder / "RESULTS.md", folder, model, tokenizer, scores, plan.heldout, seconds)


def _publish(plan: MakePlan) -> None:
    """Copies the results over what `plan.out` has; the report and the log go there too."""
    results = plan.work / "results"
    for name in ("base", "adapters"):
        shutil.rmtree(plan.out / "artefacts" / name, ignore_errors=True)
        shutil.copytree(results / name, plan.out / "artefacts" / name)
    shutil.copy(results / "RESULTS.md", plan.out / "RESULTS.md")
    shutil.copy(plan.work / "train.log", plan.out / "train.log")


def _loss_logger(name: str, steps: int) -> Callable[[int, float], None]:
    """A callback for training loops that logs the loss now and then, with the time a step took."""
    last: tuple[int, float] | None = None  # step and time when the present stretch began

    def step_done(step: int, loss: float) -> None:
        nonlocal last
        now = time.monotonic()
        if last is None:
            last = step, now
        elif step % 50 == 0 or step == steps:
            pace = (now - last[1]) / (step - last[0])
            log.info("%s: step %d of %d, loss %.4f, %.2f s a step", name, step, steps, loss, pace)
            last = step, now

    return step_done


def _log_to(path: Path) -> None:
    """Sends this process's log to the end of a file; a second call changes nothing."""
    if not log.handlers:
        handler = logging.FileHandler(path)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)


def _progress() -> Progress:
    text = TextColumn("{task.description}")
    return Progress(text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


def _parse(arguments: list[str] | None) -> MakePlan:
    parser = argparse.ArgumentParser(prog="python -m demo.make", description="Makes the demo.")
    parser.add_argument("--out", type=Path, default=HERE, help="gets artefacts/ and RESULTS.md")
    parser.add_argument("--work", type=Path, default=HERE / ".work", help="unfinished work")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a smoke test; learns nothing")
    given = parser.parse_args(arguments)
    plan = MakePlan(
        out=given.out,
        work=given.work,
        seed=given.seed,
        threads=given.threads,
        tokenizer_documents=20_000,
        pretrain=PretrainPlan(seed=given.seed),
        adapters=PLANS,
        heldout=200,
    )
    return _quick(plan) if given.quick else plan


def _quick(plan: MakePlan) -> MakePlan:
    """The same stages, each as small as it can be."""
    return replace(
        plan,
        tokenizer_documents=200,
        pretrain=replace(plan.pretrain, steps=2, rows=4, row_tokens=64),
        adapters={name: replace(a, steps=1, rows=2) for name, a in plan.adapters.items()},
        heldout=1,
    )


if __name__ == "__main__":
    make(_parse(None))

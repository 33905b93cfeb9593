"""`python -m benchmarks tune`: what `adapterd tune` finds beside the defaults, though it is killed.

A study of banking77 on the embedded base: a part of the training split to train on, another one to
compare trials by. The tuner and its workers are killed twice, with kill -9, and the same command
is given again. In the end the defaults and the best trial are scored on the validation split, which
chose the best one, and on the test split, which nothing has seen.
"""

import json
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.machine import Machine, describe
from benchmarks.markdown import table
from benchmarks.tune.judge import Kept, Split, judge, kept
from benchmarks.tune.killed import Ran, prepare, run_study

HERE = Path(__file__).parent.parent
TIMES = {"1": "once", "2": "twice"}

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True)
class Shape:
    """The study's size."""

    examples: int
    held_out: int
    trials: int
    workers: int
    threads: int  # of each
    seed: int


@dataclass(frozen=True, slots=True)
class Result:
    """What is written to results/."""

    machine: Machine
    shape: Shape
    study: dict[str, Any]
    seconds: float
    kills: tuple[int, ...]
    jobs: int
    attempts: dict[str, int]
    steps: tuple[int, int]
    same_digest: bool
    splits: list[Split]


@app.command()
def main(
    work: Annotated[Path, typer.Option(help="Where the study is kept.")] = HERE / ".work" / "tune",
    examples: Annotated[int, typer.Option(min=100, help="To train on, once.")] = 3_000,
    held_out: Annotated[int, typer.Option(min=50, help="To compare trials by.")] = 500,
    trials: Annotated[int, typer.Option(min=8)] = 20,
    workers: Annotated[int, typer.Option(min=1)] = 2,
    threads: Annotated[int, typer.Option(min=1, help="Of each worker.")] = 1,
    answered: Annotated[int, typer.Option(min=1, help="Of each split, for exact match.")] = 500,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    results: Annotated[Path, typer.Option(help="Folder for tune.json and .md.")] = HERE / "results",
) -> None:
    """Measures what a study finds, killing it twice on the way. Some ten minutes."""
    machine = describe()
    shape = Shape(examples, held_out, trials, workers, threads, seed)
    shutil.rmtree(work, ignore_errors=True)
    data = prepare(work / "rows", examples=examples, held_out=held_out, seed=seed)
    arguments = (
        "--trials", str(trials), "--parallel", str(workers), "--threads", str(threads),
        "--epochs", "1", "--seed", str(seed), "--nice", "0",
    )  # fmt: skip
    ran = run_study(data, work / "data", arguments, (trials // 3, 2 * trials // 3))
    left = kept(work / "data", work / "adapters", ran.told["best"]["number"])
    splits = [
        judge(name, rows, left.defaults, left.best, answered=answered)
        for name, rows in (("validation", data.validation), ("test", data.test))
    ]
    result = _result(machine, shape, ran, left, splits)
    results.mkdir(parents=True, exist_ok=True)
    (results / "tune.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
    (results / "tune.md").write_text(markdown(result))
    Console().print(f"best {ran.told['best']}, the defaults {ran.told['defaults']['loss']}")


def _result(machine: Machine, shape: Shape, ran: Ran, left: Kept, splits: list[Split]) -> Result:
    return Result(
        machine,
        shape,
        ran.told,
        round(ran.seconds, 1),
        ran.kills,
        left.jobs,
        left.attempts,
        left.steps,
        (ran.told["version"] or {}).get("digest") == left.digest,
        splits,
    )


def markdown(result: Result) -> str:
    shape, study = result.shape, result.study
    best, defaults = study["best"], study["defaults"]
    states = Counter(one["state"] for one in study["trials"])
    ended = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    made, whole = result.steps
    killed = " and ".join(f"once trial {number} was under way" for number in result.kills)
    begun = ", ".join(
        f"{count} {TIMES.get(times, f'{times} times')}"
        for times, count in sorted(result.attempts.items())
    )
    same = "the same" if result.same_digest else "not the same"
    parts = [
        "# A study that is killed, and what it finds",
        "",
        f"`adapterd tune` on banking77 and the embedded base: {shape.trials} trials, each one "
        f"epoch over {shape.examples:,} of the training split's messages, compared by the loss on "
        f"{shape.held_out} others of it. {shape.workers} workers of {shape.threads} thread each.",
        "",
        f"The tuner and its workers were ended with `kill -9` {len(result.kills)} times, {killed}; "
        f"the same command went on each time. In the end {len(study['trials'])} trials: {ended}. "
        f"They are {result.jobs} jobs, begun by a worker: {begun}. Pruning left "
        f"{made:,} optimizer steps of {whole:,}. All of it took {result.seconds:,.0f} s.",
        "",
        "## The defaults and the best",
        "",
        f"Best is trial {best['number']}: {_values(best['values'])}; the defaults are "
        f"{_values(defaults['values'])}. Exact match is of the first so many messages of a split.",
        "",
        *_scores(result.splits),
        "",
        "The validation split chose the best of the trials, so its figures flatter it; the test "
        "split was seen by nothing.",
        "",
        f"Published as {study['adapter']}, by a run of the same job again: its digest is {same} as "
        "that of the trial's adapter.",
        "",
        "## Trials",
        "",
        *table(
            ("trial", "values", "state", "loss"),
            [
                (
                    str(one["number"]),
                    _values(one["values"]),
                    one["state"],
                    "" if one["loss"] is None else f"{one['loss']:.4f}",
                )
                for one in study["trials"]
            ],
        ),
        "",
        f"Machine: {result.machine.text()}.",
        "",
        "Made by `python -m benchmarks tune`.",
    ]
    return "\n".join([*parts, ""])


def _scores(splits: list[Split]) -> list[str]:
    head = ("split", "model", "loss, nats a token", "exact match", "messages", "answered")
    return table(
        head,
        [
            (
                split.name,
                model,
                f"{one['eval_loss']:.4f}",
                f"{one['exact_match']:.1%}",
                f"{split.examples:,}",
                f"{split.answered:,}",
            )
            for split in splits
            for model, one in split.scores.items()
        ],
    )


def _values(values: dict[str, Any]) -> str:
    rate, dropout = values["learning_rate_multiplier"], values["dropout"]
    return (
        f"rank {values['rank']}, {values['targets']}, rate ×{rate:.3g}, dropout {dropout:.3f}, "
        f"decay {values['weight_decay']:.3f}"
    )

"""`python -m benchmarks gpu`: decoding for 64 adapters at once beside the base, on one GPU.

A base of Llama 3.1 8B's shape, 64 requests; this project's engine and peft's `adapter_names`, each
run in a process of its own, one at a time, interleaved. Beside them the memory roofline: what a
step must read, over the speed at which this GPU copies. Never run yet.
"""

import dataclasses
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from benchmarks.contestants.job import Job, Measurement, in_own_process
from benchmarks.floor import Shape, decode_cost
from benchmarks.machine import Machine
from benchmarks.machine import describe as describe_machine
from benchmarks.markdown import table
from benchmarks.mixed import check_tokens
from benchmarks.spread import ratios, spread
from benchmarks.workload import RANK, Scenario, Traffic, name_of

if TYPE_CHECKING:
    from benchmarks.gpu.device import Gpu  # brings torch, which --help does not wait for

HERE = Path(__file__).parent
SEQUENCES = 64  # and adapters
NO_DEVICE = 2  # exit status
RUNS: dict[str, tuple[str, Traffic]] = {
    "adapterd base": ("adapterd", "base"),
    "adapterd mixed-64": ("adapterd", "mixed"),
    "peft base": ("peft", "base"),
    "peft mixed-64": ("peft", "mixed"),
}
RATIOS = (
    ("adapterd mixed-64", "adapterd base"),
    ("adapterd mixed-64", "peft mixed-64"),
    ("adapterd base", "peft base"),
)

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True)
class Result:
    """What is written to results/. Figures by run, in order of the repeats."""

    machine: Machine
    gpu: "Gpu"
    job: dict[str, object]
    tokens_checked: int
    step_gb: dict[str, float]  # the least that a step of this traffic reads
    decode_ms_per_step: dict[str, list[float]]
    tokens_per_s: dict[str, list[float]]
    prefill_s: dict[str, list[float]]

    def least_ms(self, traffic: str) -> float:
        """A step's time if it did nothing but read at the speed of a copy."""
        return self.step_gb[traffic] / self.gpu.copy_gb_per_s * 1e3


@app.command()
def main(
    work: Annotated[Path, typer.Option(help="Where base and adapters are kept: 22 GB.")] = (
        HERE.parent / ".work" / "gpu"
    ),
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    new_tokens: Annotated[int, typer.Option(min=2, help="Generated per sequence.")] = 64,
    prompt_tokens: Annotated[int, typer.Option(min=8)] = 128,
    check: Annotated[bool, typer.Option(help="Compare tokens with peft's in float32.")] = True,
    results: Annotated[Path, typer.Option(help="Folder for gpu.json and gpu.md.")] = (
        HERE.parent / "results"
    ),
) -> None:
    """Measures decoding for 64 adapters at once on one GPU; exits with 2 where there is none."""
    import torch

    console = Console()
    if not torch.cuda.is_available():
        console.print("no CUDA device: this benchmark measures a GPU, and there is none here")
        raise typer.Exit(NO_DEVICE)
    from benchmarks.gpu import device, files

    machine, gpu = describe_machine(), device.describe()
    job = Job(
        "adapterd", "base", str(work), "bfloat16", prompt_tokens, new_tokens,
        threads=machine.cores, sequences=SEQUENCES, adapters=SEQUENCES, device="cuda",
    )  # fmt: skip
    with console.status("making the base and its adapters, once"):
        files.prepare(work, [name_of(n) for n in range(SEQUENCES)], torch.device("cuda"))
    torch.cuda.empty_cache()
    with console.status("comparing tokens with peft's in float32"):
        checked = check_tokens(job) if check else 0
    measured: dict[str, list[Measurement]] = {name: [] for name in RUNS}
    for _ in range(repeats):
        for name, (who, traffic) in RUNS.items():
            one = in_own_process(dataclasses.replace(job, who=who, traffic=traffic))
            measured[name].append(one)
            console.print(f"{name}: {one.decode_ms_per_step:.2f} ms/step")
    result = result_of(machine, gpu, job, checked, measured)
    write(result, results)
    console.print((results / "gpu.md").read_text())


def result_of(
    machine: Machine,
    gpu: "Gpu",
    job: Job,
    checked: int,
    measured: dict[str, list[Measurement]],
) -> Result:
    """The measurements, and what a step in the middle of the answers reads at least."""
    facts = {"dtype": job.dtype, "sequences": job.sequences, "adapters": job.adapters}
    facts |= {"prompt_tokens": job.prompt_tokens, "new_tokens": job.new_tokens, "rank": RANK}
    shape, context = Shape.of(Path(job.work) / "base"), job.prompt_tokens + job.new_tokens // 2
    traffics: tuple[Traffic, ...] = ("base", "mixed")
    return Result(
        machine=machine,
        gpu=gpu,
        job=facts,
        tokens_checked=checked,
        step_gb={
            traffic: decode_cost(
                shape, Scenario(traffic, job.sequences, job.adapters, job.prompt_tokens), context
            ).bytes
            / 1e9
            for traffic in traffics
        },
        decode_ms_per_step={n: [m.decode_ms_per_step for m in ms] for n, ms in measured.items()},
        tokens_per_s={n: [m.tokens_per_s for m in ms] for n, ms in measured.items()},
        prefill_s={n: [m.prefill_s for m in ms] for n, ms in measured.items()},
    )


def write(result: Result, folder: Path) -> None:
    """Writes gpu.json (every repeat) and gpu.md (medians) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    (folder / "gpu.md").write_text(_markdown(result))


def figure_rows(result: Result) -> list[tuple[str, ...]]:
    """Per run: ms per step, its share of the roofline, tok/s, prefill seconds."""
    rows = []
    for name, (_, traffic) in RUNS.items():
        step, least = spread(result.decode_ms_per_step[name]), result.least_ms(traffic)
        rows.append(
            (
                name,
                step.text(2),
                f"{least:.2f}",
                f"{least / step.median:.0%}",
                spread(result.tokens_per_s[name]).text(),
                spread(result.prefill_s[name]).text(2),
            )
        )
    return rows


def ratio_rows(result: Result) -> list[tuple[str, str]]:
    """Decoded steps per second of one run over another's, within a repeat."""
    steps = result.decode_ms_per_step
    return [(f"{a} / {b}", ratios(steps[b], steps[a]).text(2)) for a, b in RATIOS]


def _markdown(result: Result) -> str:
    job = result.job
    head = ("run", "decode, ms/step", "roofline, ms", "of it", "tok/s", "prefill, s")
    checked = (
        f"Before that, {result.tokens_checked} tokens of the mixed batch were compared in float32 "
        "and all equalled peft's."
        if result.tokens_checked
        else "Tokens were not compared in this run."
    )
    lines = [
        "# 64 adapters in one batch, on a GPU",
        "",
        f"A random Llama of Llama 3.1 8B's shape, {job['dtype']}; {job['sequences']} requests of "
        f"{job['prompt_tokens']} prompt and {job['new_tokens']} new tokens, greedy, submitted at "
        f"once; mixed: {job['adapters']} different rank-{job['rank']} adapters on every linear. "
        "tok/s is generated tokens over seconds from submission to the last token, in-process; "
        "a step gives one token to every request. The roofline is every weight, every adapter and "
        "the KV cache read once, at the speed at which the GPU copies its memory. Medians of "
        f"{len(next(iter(result.tokens_per_s.values())))} interleaved repeats (least-most), each "
        f"run in a process of its own after a warm-up. {checked}",
        "",
        *table(head, figure_rows(result)),
        "",
        *table(("ratio of decoded steps/s", "median (least-most)"), ratio_rows(result)),
        "",
        f"GPU: {result.gpu.text()}. Machine: {result.machine.text()}.",
        "",
        "Made by `python -m benchmarks gpu`.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    app()

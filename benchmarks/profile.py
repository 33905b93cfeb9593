"""`python -m benchmarks profile`: where a decode step's time goes, beside what each part must cost.

The engine runs workload W1; the parts of its steps are timed as they run. What a native layer does
is one call, so its parts are timed one by one afterwards, on the step's own plan, caches and
adapters, layer after layer as a step has them.
"""

import ctypes
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks import floor, w1
from benchmarks.contestants.adapterd import engine_config
from benchmarks.contestants.job import Dtype, Job
from benchmarks.floor import Floor
from benchmarks.folder_source import FolderSource
from benchmarks.machine import Machine, describe
from benchmarks.markdown import table
from benchmarks.workload import Scenario, read
from server.engine import engine as engine_module
from server.engine.attention import PagedStep
from server.engine.engine import Engine
from server.engine.messages import GenerationRequest, SamplingParams
from server.engine.native_layer import NativeLayer
from server.engine.plan import StepPlan
from server.kernels.cpu.attention import paged_attention

HERE = Path(__file__).parent
GROUPS = ("qkv", "o", "gate_up", "down")
TRIES = 15
SCENARIOS = {"base": Scenario("base"), "mixed-16": Scenario("mixed")}
WHY = {
    "schedule": "choosing who runs, and the step's tensors",
    "layers: linears": "every weight of the layers, once for all rows",
    "layers: low-rank": "every running adapter's a and b, once",
    "layers: attention": "each sequence's keys and values, once",
    "layers: the rest": "norms, rotary embedding, cache writes, gating, sums; waking threads",
    "head": "the output embedding, once for all rows",
    "model, around layers": "transformers' forward: embedding, cos and sin, last norm, its Python",
    "sample": "the largest of each row's logits",
    "apply": "tokens to sequences, events, blocks kept for the prefix cache",
}

app = typer.Typer(add_completion=False)


class NothingNative(Exception):
    """No layer runs natively here, so there is nothing to take apart."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Milliseconds of one decode step, medians over steps; `least_ms` where bytes or flops say."""

    step_ms: float
    parts_ms: dict[str, float]
    least_ms: dict[str, float]


@dataclass(frozen=True, slots=True)
class Result:
    """What is written to results/."""

    machine: Machine
    floor: Floor
    threads: int
    profiles: dict[str, Profile]


@app.command()
def main(
    work: Annotated[Path, typer.Option(help="Where the model and adapters are kept.")] = HERE
    / ".work",
    threads: Annotated[int, typer.Option(min=1)] = 2,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    results: Annotated[Path, typer.Option(help="Folder for profile.json and .md.")] = HERE
    / "results",
) -> None:
    """Takes a decode step of sixteen requests apart. A minute."""
    machine = describe()
    torch.set_num_threads(threads)
    w1.prepare(work, list(SCENARIOS.values()))
    measured = floor.in_own_process(threads)
    profiles = {}
    for name, scenario in SCENARIOS.items():
        kind: Dtype = "float32" if dtype == "float32" else "bfloat16"
        job = Job("adapterd", work=str(work), dtype=kind, new_tokens=64, threads=threads,
                  **asdict(scenario))  # fmt: skip
        profiles[name] = profile(job, measured)
        Console().print(f"{name}: {profiles[name].step_ms:.1f} ms a step")
    result = Result(machine, measured, threads, profiles)
    results.mkdir(parents=True, exist_ok=True)
    (results / "profile.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
    (results / "profile.md").write_text(markdown(result))


def profile(job: Job, measured: Floor) -> Profile:
    """Raises NothingNative."""
    workload = read(Path(job.work), job.scenario)
    source = FolderSource(workload.adapters)
    # Prompts fill their steps: sized by time, the last could begin after the first has ended.
    config = replace(engine_config(job, workload), max_prefill_slowdown=None)
    engine = Engine(config, source)
    try:
        layers = _native_layers(engine)
        digests = [None if name is None else source.digests[name] for name in workload.names]
        sampling = SamplingParams(job.new_tokens, temperature=0.0, ignore_eos=True)
        for number, (prompt, digest) in enumerate(zip(workload.prompts, digests, strict=True)):
            engine.submit(GenerationRequest(str(number), prompt, sampling, digest))
        with _stopwatch(engine) as (times, plans):
            while engine.has_work():
                engine.step()
        decodes = [at for at, plan in enumerate(plans) if plan.decodes == len(workload.names)]
        parts = {name: median([taken[at] for at in decodes]) for name, taken in times.items()}
        plan = plans[decodes[len(decodes) // 2]]
        inside = _inside_layers(engine, layers, plan)
    finally:
        engine.close()
    return _profile(parts, inside, layers, plan, measured)


def _profile(
    parts: dict[str, float],
    inside: dict[str, float],
    layers: list[NativeLayer],
    plan: StepPlan,
    measured: Floor,
) -> Profile:
    named = {
        "schedule": parts["schedule"],
        **{f"layers: {name}": ms for name, ms in inside.items()},
        "layers: the rest": parts["layers"] - sum(inside.values()),
        "head": parts["head"],
        "model, around layers": parts["run"] - parts["layers"] - parts["head"],
        "sample": parts["sample"],
        "apply": parts["apply"],
    }
    return Profile(parts["step"], named, _least_ms(layers, plan, measured))


def _native_layers(engine: Engine) -> list[NativeLayer]:
    owners = [getattr(m.forward, "__self__", None) for m in engine._base.model.modules()]
    layers = [owner for owner in owners if isinstance(owner, NativeLayer)]
    if not layers:
        raise NothingNative("no layer of this base runs natively; build the native library first")
    return layers


@contextmanager
def _stopwatch(engine: Engine) -> Iterator[tuple[dict[str, list[float]], list[StepPlan]]]:
    """Milliseconds by part and step, and the plans of the steps, while it is open."""
    times: defaultdict[str, list[float]] = defaultdict(list)
    plans: list[StepPlan] = []
    model = engine._base.model
    patched: list[tuple[Any, str, Any]] = []

    def watch(owner: Any, method: str, name: str, *, begins: bool = True) -> None:
        own = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if name == "run":
                plans.append(args[0])
            start = time.perf_counter()
            result = own(*args, **kwargs)
            taken = 1e3 * (time.perf_counter() - start)
            if begins:
                times[name].append(taken)
            else:
                times[name][-1] += taken
            return result

        patched.append((owner, method, own))
        setattr(owner, method, timed)

    first, *others = (m for m in model.modules() if isinstance(_owner(m), NativeLayer))
    watch(engine, "step", "step")
    watch(engine._scheduler, "schedule", "schedule")
    watch(engine._scheduler, "apply", "apply")
    watch(engine._runner, "run", "run")
    watch(engine_module, "sample", "sample")
    watch(model.get_output_embeddings(), "forward", "head")
    watch(first, "forward", "layers")
    for layer in others:
        watch(layer, "forward", "layers", begins=False)
    try:
        yield times, plans
    finally:
        for owner, method, own in patched:
            setattr(owner, method, own)


def _owner(module: torch.nn.Module) -> object:
    return getattr(module.forward, "__self__", None)


def _inside_layers(engine: Engine, layers: list[NativeLayer], plan: StepPlan) -> dict[str, float]:
    """Milliseconds of each kind of work over all layers, each by itself on the step's own data."""
    base, rows = engine._base, plan.tokens
    kernels = base.kernels
    assert kernels is not None
    paged = PagedStep(plan, engine._runner._cache, kernels)
    linears = [getattr(layer.job, name) for layer in layers for name in GROUPS]
    widest = max(max(g.linear.in_features, g.linear.out_features) for g in linears)
    x = torch.randn(rows, widest).to(base.dtype)
    out = torch.zeros(rows, widest, dtype=base.dtype)

    def every_linear() -> None:
        for group in linears:
            kernels.linear(
                ctypes.byref(group.linear), x.data_ptr(), widest, out.data_ptr(), widest, rows
            )

    def every_hook() -> None:
        for group in linears:
            for at in range(group.hooks):
                hook = group.hook[at]
                hook.run(hook.context, x.data_ptr(), widest, out.data_ptr(), widest, rows)

    def every_attention() -> None:
        for layer in layers:
            job = layer.job
            query = x.flatten()[: rows * job.heads * job.key_dim].view(rows, job.heads, -1)
            attended = out.flatten()[: rows * job.heads * job.value_dim]
            paged_attention(
                kernels,
                query,
                *paged.cache.tensors(layer.index),
                plan.block_tables,
                plan.query_starts,
                paged.contexts,
                attended.view(rows, job.heads, -1),
                scale=job.scale,
                window=job.window or None,
            )

    for bound in engine._runner._bound:
        bound.begin_step(plan.segments)
    return {
        "linears": _median_ms(every_linear),
        "low-rank": _median_ms(every_hook),
        "attention": _median_ms(every_attention),
    }


def _median_ms(work: Callable[[], None]) -> float:
    times = []
    for _ in range(TRIES):
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    return median(times)


def _least_ms(layers: list[NativeLayer], plan: StepPlan, measured: Floor) -> dict[str, float]:
    """What memory or arithmetic allow at best, for the parts that are bound by either."""
    size = 2 if layers[0].job.dtype else 4  # bytes of a number
    groups = [getattr(layer.job, name).linear for layer in layers for name in GROUPS]
    numbers = sum(group.in_features * group.out_features for group in groups)
    ranks = [item.rank for item in plan.segments.items]
    widths = sum(group.in_features + group.out_features for group in groups)
    contexts = sum(chunk.start + chunk.count for chunk in plan.chunks)
    cached = sum(job.kv_heads * (job.key_dim + job.value_dim) for job in (n.job for n in layers))

    def least(bytes_read: int, flops: int) -> float:
        return 1e3 * floor.Cost(bytes_read, flops).seconds(measured)

    return {
        "layers: linears": least(size * numbers, 2 * numbers * plan.tokens),
        "layers: low-rank": least(size * widths * sum(ranks), 0),
        "layers: attention": least(size * cached * contexts, 0),
    }


def markdown(result: Result) -> str:
    parts = [
        "# Where a decode step's time goes",
        "",
        "W1: sixteen requests in one step. Medians over steps; the parts of a layer are timed by "
        "themselves on the same data, so they do not quite add up. The least is what has to be "
        "read or computed at the machine's own speed, measured in the same run "
        f"({result.floor.read_gb_per_s:.1f} GB/s, {result.floor.gflop_per_s:.0f} GFLOP/s).",
    ]
    for name, one in result.profiles.items():
        rows = [
            (
                part,
                f"{ms:.2f}",
                f"{100 * ms / one.step_ms:.0f} %",
                f"{one.least_ms[part]:.2f}" if one.least_ms.get(part) else "",
                WHY[part],
            )
            for part, ms in one.parts_ms.items()
        ]
        parts += ["", f"## {name}: {one.step_ms:.1f} ms a step", ""]
        parts += table(("part", "ms", "of the step", "least, ms", "what it is"), rows)
    parts += ["", f"Machine: {result.machine.text()}; {result.threads} threads.", ""]
    return "\n".join([*parts, "Made by `python -m benchmarks profile`.", ""])

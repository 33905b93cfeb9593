"""The four things that are measured over HTTP, each as loads on a Bench and what came of them.

Times are seconds as the client saw them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.http.bench import Bench, Window
from benchmarks.http.load import Load, Shape, closed, poisson, running_and_long
from benchmarks.http.replies import Reply
from benchmarks.spread import Spread, ratios

P50, P99 = 0.5, 0.99


class RequestsFailed(Exception):
    """Some request of a load did not get its tokens: no figure would mean anything."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything. Seeds differ from load to load, so that no prompt comes twice."""

    prompt_tokens: int = 128
    new_tokens: int = 32
    saturating: int = 32  # requests open at once when the ceiling is looked for
    ceiling_requests: int = 96
    shares: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 0.9)  # of the ceiling
    seconds: float = 25.0  # of arrivals, per rate and pass
    passes: int = 3
    beside: int = 16  # requests open at once, over HTTP and without it
    beside_requests: int = 48
    beside_repeats: int = 5
    streams: int = 256
    running: int = 8  # streams that a long prompt meets
    running_tokens: int = 128
    long_prompt: int = 1500
    long_after: int = 12  # tokens of each stream
    long_repeats: int = 5


@dataclass(frozen=True, slots=True)
class Shares:
    """Where time went in one load, as shares of its wall time, but for the first."""

    api_of_step: float  # API process's CPU seconds per second in engine steps
    outside_steps: float
    api_cpu: float  # of one core
    generator_cpu: float

    @classmethod
    def of(cls, window: Window) -> "Shares":
        wall = window.outcome.seconds
        return cls(
            api_of_step=window.api_cpu_s / window.step_s,
            outside_steps=max(0.0, 1 - window.step_s / wall),
            api_cpu=window.api_cpu_s / wall,
            generator_cpu=window.outcome.cpu_s / wall,
        )


@dataclass(frozen=True, slots=True)
class Ceiling:
    """A closed loop: as many requests as the server can carry."""

    requests_per_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Pass:
    """One stretch of arrivals at one rate."""

    requests: int
    tokens_per_s: float
    ttft_s: tuple[float, ...]
    gap_p50_s: float
    gap_p99_s: float
    lag_p99_s: float  # of the generator: sent after due
    shares: Shares

    @property
    def tail(self) -> float:
        """p99 of TTFT over its p50."""
        return percentile(self.ttft_s, P99) / percentile(self.ttft_s, P50)


@dataclass(slots=True)
class Rate:
    """One open-loop rate, over all passes."""

    share: float  # of the ceiling
    per_s: float
    passes: list[Pass] = field(default_factory=list)
    gap_p50_s: float = 0.0  # of all passes' gaps together
    gap_p99_s: float = 0.0

    @property
    def ttft_s(self) -> list[float]:
        return [one for each in self.passes for one in each.ttft_s]


@dataclass(slots=True)
class Beside:
    """The same loads over HTTP and on the engine without it, in turn: tokens per second."""

    http: list[float] = field(default_factory=list)
    engine: list[float] = field(default_factory=list)
    api_us_per_token: list[float] = field(default_factory=list)  # CPU
    shares: list[Shares] = field(default_factory=list)

    def ratio(self) -> Spread:
        return ratios(self.http, self.engine)


@dataclass(frozen=True, slots=True)
class Streams:
    """Many streams opened in one moment."""

    asked: int
    complete: int  # with exactly the tokens asked for
    failures: tuple[str, ...]
    seconds: float
    tokens_per_s: float
    ttft_max_s: float


@dataclass(slots=True)
class LongPrompt:
    """p99 between tokens of running streams: while a long prompt is read, and without one."""

    with_s: list[float] = field(default_factory=list)
    without_s: list[float] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)  # the long prompt's

    def ratio(self) -> Spread:
        return ratios(self.with_s, self.without_s)


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank. Raises ValueError if there are none."""
    if not values:
        raise ValueError("no measurement to summarise")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Scenarios:
    """One bench, one plan; every load has a seed of its own."""

    def __init__(self, bench: Bench, shape: Shape, plan: Plan) -> None:
        self._bench = bench
        self._shape = shape
        self._plan = plan
        self._seed = 0

    def warm_up(self) -> None:
        """Every adapter resident, in both engines."""
        load = closed(self._shape, len(self._shape.models), self._plan.beside, self._next_seed())
        self._complete(load)
        self._bench.without_http(load)

    def ceiling(self) -> Ceiling:
        plan = self._plan
        load = closed(self._shape, plan.ceiling_requests, plan.saturating, self._next_seed())
        window = self._complete(load)
        return Ceiling(window.requests_per_s, window.tokens_per_s)

    def open_loop(self, ceiling_per_s: float) -> Iterator[tuple[Rate, Pass]]:
        """Every rate once, then every rate again; a Rate is whole after its last pass."""
        rates = [Rate(share, share * ceiling_per_s) for share in self._plan.shares]
        gaps: dict[float, list[float]] = {rate.share: [] for rate in rates}
        for _ in range(self._plan.passes):
            for rate in rates:
                window = self._complete(
                    poisson(self._shape, rate.per_s, self._plan.seconds, self._next_seed())
                )
                rate.passes.append(_pass(window))
                gaps[rate.share] += _gaps(window.outcome.complete)
                rate.gap_p50_s = percentile(gaps[rate.share], P50)
                rate.gap_p99_s = percentile(gaps[rate.share], P99)
                yield rate, rate.passes[-1]

    def beside(self) -> Beside:
        plan, result = self._plan, Beside()
        for _ in range(plan.beside_repeats):
            load = closed(self._shape, plan.beside_requests, plan.beside, self._next_seed())
            window = self._complete(load)
            alone = self._bench.without_http(load)
            result.http.append(window.tokens_per_s)
            result.engine.append(alone.tokens / alone.seconds)
            result.api_us_per_token.append(1e6 * window.api_cpu_s / window.outcome.tokens)
            result.shares.append(Shares.of(window))
        return result

    def streams(self) -> Streams:
        count = self._plan.streams
        outcome = self._bench.over_http(
            closed(self._shape, count, count, self._next_seed())
        ).outcome
        return Streams(
            asked=count,
            complete=len(outcome.complete),
            failures=tuple(sorted(set(outcome.failures))),
            seconds=outcome.seconds,
            tokens_per_s=outcome.tokens / outcome.seconds,
            ttft_max_s=max((reply.ttft_s for reply in outcome.complete), default=0.0),
        )

    def long_prompt(self) -> LongPrompt:
        plan, result = self._plan, LongPrompt()
        shape = Shape(
            self._shape.models, self._shape.vocab, plan.prompt_tokens, plan.running_tokens
        )
        for _ in range(plan.long_repeats):
            load = running_and_long(
                shape, plan.running, plan.long_prompt, plan.long_after, self._next_seed()
            )
            *streams, long = self._complete(load).outcome.complete
            begin, end = long.sent_s, long.token_s[0]
            result.with_s.append(percentile(gaps_within(streams, begin, end), P99))
            result.ttft_s.append(long.ttft_s)
            undisturbed = self._complete(Load(load.asks[:-1])).outcome.complete
            start = max(reply.token_s[plan.long_after - 1] for reply in undisturbed)
            within = gaps_within(undisturbed, start, start + end - begin)
            result.without_s.append(percentile(within, P99))
        return result

    def _complete(self, load: Load) -> Window:
        """Raises RequestsFailed unless every request got its tokens."""
        window = self._bench.over_http(load)
        if failures := window.outcome.failures:
            raise RequestsFailed(f"{len(failures)} of {len(load.asks)}: {failures[0]}")
        return window

    def _next_seed(self) -> int:
        self._seed += 1
        return self._seed


def gaps_within(replies: Sequence[Reply], begin: float, end: float) -> list[float]:
    """Those between tokens of which some part lies between the two moments."""
    return [
        after - before
        for reply in replies
        for before, after in zip(reply.token_s, reply.token_s[1:], strict=False)
        if before < end and after > begin
    ]


def _gaps(replies: Sequence[Reply]) -> list[float]:
    return [gap for reply in replies for gap in reply.gaps_s]


def _pass(window: Window) -> Pass:
    replies = window.outcome.complete
    gaps = _gaps(replies)
    return Pass(
        requests=len(replies),
        tokens_per_s=window.tokens_per_s,
        ttft_s=tuple(round(reply.ttft_s, 6) for reply in replies),
        gap_p50_s=percentile(gaps, P50),
        gap_p99_s=percentile(gaps, P99),
        lag_p99_s=percentile([reply.sent_s - reply.due_s for reply in replies], P99),
        shares=Shares.of(window),
    )

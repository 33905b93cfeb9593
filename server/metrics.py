"""Every metric: its name, labels, help and meaning, in one place.

Names under `vllm:` are those that routers and boards already read, with the one label `model_name`
(or those their readers expect); ours are under `adapterd_`. Nothing is registered globally. Times
are in seconds. Not here: HTTP, the decision what to count when.
"""

import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from adapters_store.catalog import VersionRecord
from server.engine.messages import GenerationRequest, Stats, TokenEvent

OTHER = "other"  # the adapters that came after the label was full
MAX_NAMES = 10_000  # digests whose adapter's name is remembered, for the labels of residency
MAX_NAMES_OF_ONE = 16  # of those that share their content
Outcome = Literal["done", "abort", "error"]

# vLLM's own buckets, so that its board's heat maps line up.
_FIRST_TOKEN_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
_TOKEN_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
)  # fmt: skip
_REQUEST_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
_TOKENS = tuple(step * 10**power for power in range(6) for step in (1, 2, 5))
_LOAD_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class EngineGauges(Protocol):
    """What is read of the engine at every scrape."""

    @property
    def state(self) -> str: ...

    @property
    def stats(self) -> Stats: ...

    @property
    def restarts(self) -> int: ...


class AdapterNames:
    """Digest → adapters' names, learned as requests name them; the oldest are forgotten."""

    def __init__(self) -> None:
        self._names: OrderedDict[str, list[str]] = OrderedDict()  # each, the latest named last

    def learn(self, digest: str, name: str) -> None:
        names = self._names.setdefault(digest, [])
        if name in names:
            names.remove(name)
        names.append(name)
        del names[:-MAX_NAMES_OF_ONE]
        self._names.move_to_end(digest)
        if len(self._names) > MAX_NAMES:
            self._names.popitem(last=False)

    def all(self, digest: str) -> Sequence[str]:
        """Several where adapters have the same content.

        The digest's beginning for one loaded before this process knew it.
        """
        return self._names.get(digest) or (digest[:12],)


class AdapterLabels:
    """Keeps a label's values few: the first `limit` names get one each, the rest share OTHER."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: set[str] = set()

    def of(self, name: str) -> str:
        if name not in self._seen:
            if len(self._seen) >= self._limit:
                return OTHER
            self._seen.add(name)
        return name


class Metrics:
    """The server's metrics in the registry that is passed in."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        model_name: str,
        engine: EngineGauges,
        max_resident_adapters: int,
        eviction: str = "lru",
        max_adapter_labels: int = 100,
    ) -> None:
        self._registry = registry
        self._model_name = model_name
        self._names = AdapterNames()
        self._labels = AdapterLabels(max_adapter_labels)
        self._requests = RequestMetrics(registry, model_name)
        registry.register(
            EngineCollector(engine, self._names, model_name, max_resident_adapters, eviction)
        )
        ProcessCollector(registry=registry)
        self._training_jobs = Gauge(
            "adapterd_training_jobs",
            "Fine-tuning jobs of this base in the catalog, by status.",
            ("status",),
            registry=registry,
        )

    def learn_name(self, digest: str, name: str) -> None:
        """That this version is the adapter `name`'s."""
        self._names.learn(digest, name)

    def begin(self, adapter: VersionRecord | None, request: GenerationRequest) -> "RequestMeter":
        """A meter for one prompt that is about to go to the engine."""
        name = self._model_name if adapter is None else self._labels.of(adapter.name)
        return RequestMeter(self._requests, name, request)

    def set_training_jobs(self, counts: Mapping[str, int] | None) -> None:
        """Jobs by status, as of a few seconds ago at most; None, and none is told: not known."""
        self._training_jobs.clear()
        for status, count in (counts or {}).items():
            self._training_jobs.labels(status).set(count)

    def render(self) -> bytes:
        """What /metrics answers, in Prometheus' text format."""
        return generate_latest(_WithoutCreated(self._registry))


class RequestMetrics:
    """The counters and histograms that are filled as requests go by."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        def counter(name: str, text: str) -> Counter:
            metric = Counter(f"vllm:{name}", text, ("model_name",), registry=registry)
            return metric.labels(model_name)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            labels = ("model_name",)
            metric = Histogram(f"vllm:{name}", text, labels, registry=registry, buckets=buckets)
            return metric.labels(model_name)

        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of requests that began.")
        self.generation_tokens = counter("generation_tokens", "Tokens generated.")
        self.first_token = histogram(
            "time_to_first_token_seconds", "Arrival to first token.", _FIRST_TOKEN_S
        )
        self.inter_token = histogram(
            "inter_token_latency_seconds", "Between two tokens of a sequence.", _TOKEN_S
        )
        registry.register(_SecondName(registry, "inter_token_latency", "time_per_output_token"))
        self.latency = histogram(
            "e2e_request_latency_seconds", "Arrival to last token.", _REQUEST_S
        )
        self.queue = histogram("request_queue_time_seconds", "Waiting to run.", _REQUEST_S)
        self.inference = histogram(
            "request_inference_time_seconds", "Running: prefill and decode.", _REQUEST_S
        )
        self.prefill = histogram("request_prefill_time_seconds", "In prefill.", _REQUEST_S)
        self.decode = histogram("request_decode_time_seconds", "In decode.", _REQUEST_S)
        self.prompt_length = histogram("request_prompt_tokens", "Prompt's tokens.", _TOKENS)
        self.answer_length = histogram(
            "request_generation_tokens", "Tokens generated for a choice.", _TOKENS
        )
        self.max_answer_length = histogram(
            "request_max_num_generation_tokens", "Longest choice of a prompt, tokens.", _TOKENS
        )
        self.max_tokens = histogram("request_params_max_tokens", "max_tokens asked for.", _TOKENS)
        self.n = histogram("request_params_n", "n asked for.", (1, 2, 5, 10, 20))
        success = Counter(
            "vllm:request_success",
            "Choices that ended, by why.",
            ("model_name", "finished_reason"),
            registry=registry,
        )
        reasons = ("stop", "length", "abort", "error")  # all present from the first scrape
        self.ended = {reason: success.labels(model_name, reason) for reason in reasons}
        self.by_adapter = ByAdapter(registry)


class ByAdapter:
    """The metrics that know adapters apart."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("adapter",)
        self.requests = Counter(
            "adapterd_adapter_requests",
            "Prompts that ended, by adapter (the base by its name) and outcome.",
            ("adapter", "outcome"),
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "adapterd_adapter_prompt_tokens", "Prompt tokens by adapter.", labels, registry=registry
        )
        self.generation_tokens = Counter(
            "adapterd_adapter_generation_tokens",
            "Tokens generated by adapter.",
            labels,
            registry=registry,
        )
        self.latency = Histogram(
            "adapterd_adapter_request_seconds",
            "Arrival to last token by adapter.",
            labels,
            registry=registry,
            buckets=(0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
        )
        self.load_wait = Histogram(
            "adapterd_adapter_load_wait_seconds",
            "How long a prompt waited for its adapter to become resident.",
            registry=registry,
            buckets=_LOAD_S,
        )


class RequestMeter:
    """Measures one prompt, from submission to the end of all its choices."""

    def __init__(self, metrics: RequestMetrics, adapter: str, request: GenerationRequest) -> None:
        self._metrics = metrics
        self._adapter = adapter
        self._adapter_tokens = metrics.by_adapter.generation_tokens.labels(adapter)
        self._request = request
        self._began = time.perf_counter()
        self._first: float | None = None
        self._last: dict[int, float] = {}  # each choice's latest token

    def token(self, event: TokenEvent) -> None:
        """One more token of one choice."""
        if event.token_id is None:
            return
        now = time.perf_counter()
        if event.index in self._last:
            self._metrics.inter_token.observe(now - self._last[event.index])
        self._last[event.index] = now
        self._metrics.generation_tokens.inc()
        self._adapter_tokens.inc()
        if self._first is None:
            self._first = now
            self._begun(now, event)

    def _begun(self, now: float, event: TokenEvent) -> None:
        prompt_tokens = len(self._request.prompt)
        self._metrics.first_token.observe(now - self._began)
        self._metrics.prompt_tokens.inc(prompt_tokens)
        self._metrics.prompt_length.observe(prompt_tokens)
        self._metrics.by_adapter.prompt_tokens.labels(self._adapter).inc(prompt_tokens)
        self._metrics.max_tokens.observe(self._request.sampling.max_tokens)
        self._metrics.n.observe(self._request.n)
        if event.timing is not None:
            self._metrics.queue.observe(event.timing.queue_s)
            self._metrics.prefill.observe(event.timing.prefill_s)
            self._metrics.by_adapter.load_wait.observe(event.timing.load_s)

    def end(self, outcome: Outcome, choices: Sequence[tuple[str | None, int]]) -> None:
        """The prompt is over: each choice's finish reason, None if it has none, and tokens."""
        now = time.perf_counter()
        lengths = [tokens for _, tokens in choices]
        for reason, tokens in choices:
            self._metrics.ended[reason or ("error" if outcome == "error" else "abort")].inc()
            self._metrics.answer_length.observe(tokens)
        self._metrics.max_answer_length.observe(max(lengths, default=0))
        self._metrics.latency.observe(now - self._began)
        self._metrics.by_adapter.requests.labels(self._adapter, outcome).inc()
        self._metrics.by_adapter.latency.labels(self._adapter).observe(now - self._began)
        if self._first is not None:
            self._metrics.decode.observe(now - self._first)
            self._metrics.inference.observe(now - self._began)


@dataclass(frozen=True, slots=True)
class _Total:
    """A running total of the engine's, and how it is published."""

    field: str  # of Stats
    name: str
    text: str


_VLLM_TOTALS = (
    _Total("preemptions", "vllm:num_preemptions", "Sequences put back to waiting."),
    _Total("drafts", "vllm:spec_decode_num_drafts", "Times a sequence had guesses in a step."),
    _Total("drafted_tokens", "vllm:spec_decode_num_draft_tokens", "Tokens guessed."),
    _Total("accepted_tokens", "vllm:spec_decode_num_accepted_tokens", "Guesses that came true."),
    _Total("prefix_queries", "vllm:prefix_cache_queries", "Prompt tokens looked up in the cache."),
    _Total("prefix_hits", "vllm:prefix_cache_hits", "Of those, tokens that were found."),
)
_TOTALS = (
    _Total("steps", "adapterd_engine_steps", "Forward passes."),
    _Total("step_tokens", "adapterd_engine_step_tokens", "Tokens over all steps; by steps: fill."),
    _Total("step_segments", "adapterd_engine_step_segments", "Segments over all steps."),
    _Total("step_s", "adapterd_engine_step_seconds", "Seconds spent in steps."),
    _Total("slot_hits", "adapterd_slot_hits", "Adapters wanted that were in a slot."),
    _Total("slot_misses", "adapterd_slot_misses", "Adapters wanted that were in no slot."),
    _Total("slot_evictions", "adapterd_slot_evictions", "Adapters that lost their slot."),
    _Total("host_hits", "adapterd_host_hits", "Adapters wanted that were in the host cache."),
    _Total("host_misses", "adapterd_host_misses", "Adapters that had to be read from disk."),
    _Total("host_evictions", "adapterd_host_evictions", "Adapters dropped from the host cache."),
    _Total("failed_loads", "adapterd_adapter_failed_loads", "Adapters that could not be loaded."),
)


class RunningTotals:
    """Adds up totals that begin again at 0 with each engine, so that they never go backwards.

    What an engine counted after the last scrape before it died is lost.
    """

    def __init__(self) -> None:
        self._before: dict[str, float] = {}  # from the engines that are gone
        self._last: dict[str, float] = {}
        self._restarts = 0

    def add(self, restarts: int, values: dict[str, float]) -> dict[str, float]:
        """The totals over all engines, `values` being those of the one that runs."""
        if restarts != self._restarts:
            self._restarts = restarts
            for name, value in self._last.items():
                self._before[name] = self._before.get(name, 0) + value
            self._last = {}
        # The stats may lag behind the count of restarts, and be empty until the engine is ready.
        for name, value in values.items():
            self._last[name] = max(value, self._last.get(name, 0))
        names = self._before.keys() | self._last.keys()
        return {name: self._before.get(name, 0) + self._last.get(name, 0) for name in names}


class EngineCollector(Collector):
    """Reads the engine's latest Stats when Prometheus scrapes."""

    def __init__(
        self,
        engine: EngineGauges,
        names: AdapterNames,
        model_name: str,
        max_resident: int,
        eviction: str,
    ) -> None:
        self._engine = engine
        self._names = names
        self._model_name = model_name
        self._max_resident = max_resident
        self._eviction = eviction
        self._totals = RunningTotals()

    def describe(self) -> Iterator[Metric]:
        """Nothing, so that registering reads no engine."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats
        yield from self._vllm_gauges(stats)
        yield self._lora_requests(stats)
        yield self._lora_loaded(stats)
        yield from self._counters(stats)
        yield from self._our_gauges(stats)

    def _vllm_gauges(self, stats: Stats) -> Iterator[Metric]:
        used = stats.kv_blocks_used / stats.kv_blocks_total if stats.kv_blocks_total else 0.0
        for name, text, value in (
            ("num_requests_running", "Sequences in the batch.", stats.running),
            ("num_requests_waiting", "Sequences waiting to run.", stats.waiting),
            ("kv_cache_usage_perc", "KV blocks in use; 1 is all of them.", used),
        ):
            gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=("model_name",))
            gauge.add_metric((self._model_name,), value)
            yield gauge

    def _lora_requests(self, stats: Stats) -> Metric:
        """One series, whose labels are the news and whose value is their time."""
        labels = ("max_lora", "running_lora_adapters", "waiting_lora_adapters")
        gauge = GaugeMetricFamily(
            "vllm:lora_requests_info", "Resident and awaited adapters; Unix time.", labels=labels
        )
        running, waiting = (
            ",".join(sorted({name for digest in digests for name in self._names.all(digest)}))
            for digests in (stats.running_adapters, stats.waiting_adapters)
        )
        gauge.add_metric((str(self._max_resident), running, waiting), time.time())
        return gauge

    def _lora_loaded(self, stats: Stats) -> Metric:
        labels = ("model_name", "adapter_name", "level", "pinned")
        gauge = GaugeMetricFamily(
            "vllm:lora_adapter_loaded", "1 for an adapter in memory, by tier.", labels=labels
        )
        rows = {
            (name, level, str(digest in stats.pinned).lower())
            for digest, level in stats.residency.items()
            for name in self._names.all(digest)
        }
        for name, level, pinned in sorted(rows):
            gauge.add_metric((self._model_name, name, level, pinned), 1)
        return gauge

    def _counters(self, stats: Stats) -> Iterator[Metric]:
        totals = (*_VLLM_TOTALS, *_TOTALS)
        values = {total.field: float(getattr(stats, total.field)) for total in totals}
        values |= {f"loads:{tier}": count for tier, count in stats.loads.items()}
        values |= {f"load_s:{tier}": seconds for tier, seconds in stats.load_s.items()}
        sums = self._totals.add(self._engine.restarts, values)
        for total in _VLLM_TOTALS:
            counter = CounterMetricFamily(total.name, total.text, labels=("model_name",))
            counter.add_metric((self._model_name,), sums[total.field])
            yield counter
        for total in _TOTALS:
            yield CounterMetricFamily(total.name, total.text, value=sums[total.field])
        for key, name, text in (
            ("loads", "adapterd_adapter_loads", "Adapters loaded, by the tier they came from."),
            ("load_s", "adapterd_adapter_load_seconds", "Seconds spent loading, by tier."),
        ):
            counter = CounterMetricFamily(name, text, labels=("tier",))
            for found in sorted(sums):
                if found.startswith(f"{key}:"):
                    counter.add_metric((found.removeprefix(f"{key}:"),), sums[found])
            yield counter
        yield CounterMetricFamily(
            "adapterd_engine_restarts",
            "Times it died and began again.",
            value=self._engine.restarts,
        )

    def _our_gauges(self, stats: Stats) -> Iterator[Metric]:
        for name, text, value in (
            ("adapterd_slot_leases", "Leases on slots held by sequences.", stats.slot_leases),
            ("adapterd_slot_rows_used", "Rows of adapters in slots.", stats.slot_rows_used),
            ("adapterd_slot_rows", "Rows that slots share.", stats.slot_rows_total),
            ("adapterd_slots_pinned", "Slots that keep their adapter.", len(stats.pinned)),
            ("adapterd_host_cache_bytes", "Bytes in the host cache.", stats.host_bytes),
            ("adapterd_kv_blocks_used", "KV blocks in use.", stats.kv_blocks_used),
            ("adapterd_kv_blocks", "KV blocks there are.", stats.kv_blocks_total),
            ("adapterd_engine_ready", "1 while it can serve.", self._engine.state == "ready"),
        ):
            yield GaugeMetricFamily(name, text, value=float(value))
        yield InfoMetricFamily("adapterd_build", "What runs here.", value={"version": _version()})
        yield InfoMetricFamily(
            "adapterd_eviction", "Who leaves a full tier.", value={"policy": self._eviction}
        )


class _SecondName(Collector):
    """A histogram of seconds again, under the name that older boards read.

    Observing every token twice would cost the same time twice.
    """

    def __init__(self, registry: CollectorRegistry, name: str, second: str) -> None:
        self._registry = registry
        self._name = f"vllm:{name}_seconds"
        self._second = f"vllm:{second}_seconds"

    def describe(self) -> Iterator[Metric]:
        yield Metric(self._second, "", "histogram")

    def collect(self) -> Iterator[Metric]:
        names = [f"{self._name}{part}" for part in ("_bucket", "_count", "_sum")]
        for metric in self._registry.restricted_registry(names).collect():
            again = Metric(self._second, f"Same as {metric.name}.", metric.type)
            for sample in metric.samples:
                name = sample.name.replace(self._name, self._second)
                again.add_sample(name, sample.labels, sample.value)
            yield again


class _WithoutCreated(Collector):
    """A registry without the time each series began, which would double their number."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [one for one in metric.samples if not one.name.endswith("_created")]
            yield metric


def _version() -> str:
    try:
        return version("adapterd")
    except PackageNotFoundError:  # from a checkout that is not installed
        return "unknown"

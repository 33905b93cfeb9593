"""Names that boards read, labels that stay few, counters that never go backwards."""

import re
import time

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from adapters_store.catalog import VersionRecord
from adapters_store.content import AdapterFacts
from server.engine.messages import GenerationRequest, SamplingParams, Stats, Timing, TokenEvent
from server.metrics import MAX_NAMES, AdapterLabels, AdapterNames, Metrics, RunningTotals

# Every metric that vLLM's own Grafana board queries, in its present and its earlier form, and those
# that the Gateway API's inference extension scrapes.
READ_BY_OTHERS = """
    vllm:e2e_request_latency_seconds_bucket vllm:e2e_request_latency_seconds_sum
    vllm:e2e_request_latency_seconds_count vllm:prompt_tokens_total vllm:generation_tokens_total
    vllm:inter_token_latency_seconds_bucket vllm:time_per_output_token_seconds_bucket
    vllm:time_per_output_token_seconds_sum vllm:num_requests_running vllm:num_requests_waiting
    vllm:time_to_first_token_seconds_bucket vllm:time_to_first_token_seconds_sum
    vllm:kv_cache_usage_perc vllm:request_prompt_tokens_bucket
    vllm:request_generation_tokens_bucket vllm:request_success_total
    vllm:request_queue_time_seconds_sum vllm:request_prefill_time_seconds_sum
    vllm:request_decode_time_seconds_sum vllm:request_inference_time_seconds_sum
    vllm:request_max_num_generation_tokens_sum vllm:num_preemptions_total
    vllm:lora_requests_info vllm:prefix_cache_queries_total vllm:prefix_cache_hits_total
    vllm:spec_decode_num_drafts_total vllm:spec_decode_num_draft_tokens_total
    vllm:spec_decode_num_accepted_tokens_total
""".split()


class Engine:
    """What Metrics reads, set by hand."""

    def __init__(self) -> None:
        self.state = "ready"
        self.stats = Stats()
        self.restarts = 0


def make(engine: Engine | None = None, **rest) -> Metrics:
    return Metrics(
        CollectorRegistry(),
        model_name="base",
        engine=engine or Engine(),
        max_resident_adapters=4,
        **rest,
    )


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[name, tuple(sorted(labels.items()))]


def version(name: str) -> VersionRecord:
    return VersionRecord(name, 1, name * 16, AdapterFacts("lora", 1, (), 1), 0)


def run_one(metrics: Metrics, adapter: VersionRecord | None = None) -> None:
    meter = metrics.begin(adapter, GenerationRequest("r", (1, 2, 3), SamplingParams(8)))
    meter.token(TokenEvent("r", 0, 5, timing=Timing(0.2, 0.1, 0.05)))
    meter.token(TokenEvent("r", 0, 6, finish_reason="length"))
    meter.end("done", [("length", 2)])


def test_every_name_that_others_read_is_there():
    metrics = make()
    run_one(metrics)
    assert set(READ_BY_OTHERS) <= {name for name, _ in samples(metrics)}


def test_vllm_names_carry_no_adapter():
    metrics = make()
    run_one(metrics, version("sql"))
    for (name, labels), _ in samples(metrics).items():
        if name.startswith("vllm:") and not name.startswith("vllm:lora_"):
            assert dict(labels)["model_name"] == "base"
            assert {key for key, _ in labels} <= {"model_name", "le", "finished_reason"}


def test_a_request_is_counted():
    metrics = make()
    run_one(metrics, version("sql"))
    assert value(metrics, "vllm:prompt_tokens_total", model_name="base") == 3
    assert value(metrics, "vllm:generation_tokens_total", model_name="base") == 2
    assert value(metrics, "vllm:request_queue_time_seconds_sum", model_name="base") == 0.2
    assert value(metrics, "vllm:request_prefill_time_seconds_sum", model_name="base") == 0.05
    ended = {"model_name": "base", "finished_reason": "length"}
    assert value(metrics, "vllm:request_success_total", **ended) == 1
    assert value(metrics, "vllm:request_success_total", **ended | {"finished_reason": "stop"}) == 0
    ours = {"adapter": "sql"}
    assert value(metrics, "adapterd_adapter_requests_total", outcome="done", **ours) == 1
    assert value(metrics, "adapterd_adapter_generation_tokens_total", **ours) == 2
    assert value(metrics, "adapterd_adapter_load_wait_seconds_sum") == 0.1


def test_a_request_that_never_began():
    metrics = make()
    meter = metrics.begin(None, GenerationRequest("r", (1,), SamplingParams(8), n=2))
    meter.end("error", [(None, 0), (None, 0)])
    ended = {"model_name": "base", "finished_reason": "error"}
    assert value(metrics, "vllm:request_success_total", **ended) == 2
    assert value(metrics, "vllm:prompt_tokens_total", model_name="base") == 0
    assert value(metrics, "adapterd_adapter_requests_total", adapter="base", outcome="error") == 1


def test_gauges_are_read_at_the_scrape():
    engine = Engine()
    metrics = make(engine)
    metrics.learn_name("d1", "sql")
    metrics.learn_name("d2", "dates")
    for name in ("days", "dates"):  # the same content by another name
        metrics.learn_name("d2", name)
    engine.stats = Stats(
        running=3,
        waiting=2,
        kv_blocks_used=1,
        kv_blocks_total=4,
        residency={"d1": "slot", "d2": "host", "f" * 64: "slot"},
        pinned=("d1",),
        running_adapters=("d1", "f" * 64),
        waiting_adapters=("d2",),
    )
    assert value(metrics, "vllm:num_requests_running", model_name="base") == 3
    assert value(metrics, "vllm:num_requests_waiting", model_name="base") == 2
    assert value(metrics, "vllm:kv_cache_usage_perc", model_name="base") == 0.25
    found = samples(metrics)
    infos = [(dict(labels), v) for (name, labels), v in found.items() if name.endswith("sts_info")]
    assert len(infos) == 1
    labels, at = infos[0]
    assert labels == {
        "max_lora": "4",
        "running_lora_adapters": "ffffffffffff,sql",
        "waiting_lora_adapters": "dates,days",
    }
    assert abs(at - time.time()) < 10
    loaded = {
        tuple(dict(labels)[key] for key in ("adapter_name", "level", "pinned")): one
        for (name, labels), one in samples(metrics).items()
        if name == "vllm:lora_adapter_loaded"
    }
    assert loaded == {
        ("sql", "slot", "true"): 1,
        ("dates", "host", "false"): 1,
        ("days", "host", "false"): 1,
        ("f" * 12, "slot", "false"): 1,
    }
    assert value(metrics, "adapterd_slots_pinned") == 1


def test_the_policy_of_eviction_is_told():
    assert value(make(eviction="cost"), "adapterd_eviction_info", policy="cost") == 1


def test_counters_survive_an_engines_restart():
    engine = Engine()
    metrics = make(engine)
    total = "adapterd_engine_steps_total"
    engine.stats = Stats(steps=100, loads={"disk": 3}, prefix_queries=50, prefix_hits=20)
    assert value(metrics, total) == 100
    engine.stats = Stats()  # it died; the next one is not ready yet
    assert value(metrics, total) == 100
    engine.restarts, engine.stats = 1, Stats()
    assert value(metrics, total) == 100
    engine.stats = Stats(steps=150, loads={"disk": 1, "host": 2}, prefix_queries=7, prefix_hits=6)
    assert value(metrics, total) == 250
    assert value(metrics, "vllm:prefix_cache_queries_total", model_name="base") == 57
    assert value(metrics, "vllm:prefix_cache_hits_total", model_name="base") == 26
    assert value(metrics, "adapterd_adapter_loads_total", tier="disk") == 4
    assert value(metrics, "adapterd_adapter_loads_total", tier="host") == 2
    assert value(metrics, "adapterd_engine_restarts_total") == 1


def test_drafts_are_counted_under_vllms_names():
    engine = Engine()
    metrics = make(engine)
    engine.stats = Stats(drafts=3, drafted_tokens=12, accepted_tokens=7)
    for name, wanted in (("num_drafts", 3), ("num_draft_tokens", 12), ("num_accepted_tokens", 7)):
        assert value(metrics, f"vllm:spec_decode_{name}_total", model_name="base") == wanted


def test_totals_add_up_over_several_engines():
    totals = RunningTotals()
    said = [(0, 5), (0, 9), (1, 2), (3, 1), (3, 4)]
    assert [totals.add(restarts, {"x": x})["x"] for restarts, x in said] == [5, 9, 11, 12, 15]


def test_labels_stay_few():
    labels = AdapterLabels(2)
    assert [labels.of(name) for name in "abcab"] == ["a", "b", "other", "a", "b"]
    metrics = make(max_adapter_labels=1)
    for name in ("a", "b", "c"):
        run_one(metrics, version(name))
    requests = "adapterd_adapter_requests_total"
    assert value(metrics, requests, adapter="other", outcome="done") == 2


def test_names_stay_bounded():
    names = AdapterNames()
    for number in range(MAX_NAMES + 5):
        names.learn(f"{number:064x}", f"a{number}")
    assert list(names.all(f"{3:064x}")) == ["0" * 12]
    assert list(names.all(f"{MAX_NAMES:064x}")) == [f"a{MAX_NAMES}"]


def test_a_scrape_is_small_and_has_no_created_series():
    engine = Engine()
    metrics = make(engine)
    for number in range(200):
        run_one(metrics, version(f"a{number}"))
    engine.stats = Stats(residency={f"{number:064x}": "host" for number in range(1000)})
    began = time.perf_counter()
    text = metrics.render()
    assert time.perf_counter() - began < 1
    assert len(text) < 1_000_000
    assert not re.search(rb"^\S*_created", text, re.MULTILINE)


def test_two_servers_do_not_share_metrics():
    first, second = make(), make()
    run_one(first)
    assert value(second, "vllm:prompt_tokens_total", model_name="base") == 0

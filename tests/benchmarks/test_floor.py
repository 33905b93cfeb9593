"""The floor's arithmetic beside a real Llama's own numbers."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import floor, w1
from benchmarks.floor import Cost, Floor, Shape, decode_cost, prefill_cost
from benchmarks.workload import Scenario

SMALL = Shape(hidden=64, intermediate=96, layers=2, heads=4, kv_heads=2, vocab=128)


@pytest.fixture
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=SMALL.hidden,
            intermediate_size=SMALL.intermediate,
            num_hidden_layers=SMALL.layers,
            num_attention_heads=SMALL.heads,
            num_key_value_heads=SMALL.kv_heads,
            vocab_size=SMALL.vocab,
            tie_word_embeddings=True,
        )
    )


def test_shape_is_read_from_a_config(tmp_path: Path, model: LlamaForCausalLM):
    model.config.save_pretrained(tmp_path)
    assert Shape.of(tmp_path) == SMALL


def test_bytes_are_the_models_own(model: LlamaForCausalLM):
    """One sequence without context reads every parameter once."""
    cost = decode_cost(SMALL, Scenario("base", sequences=1), context=0)
    assert cost.bytes == 2 * model.num_parameters()


def test_bytes_of_adapters_are_pefts_own(model: LlamaForCausalLM):
    scenario = Scenario("mixed", sequences=8, adapters=4)
    extra = decode_cost(SMALL, scenario, 0).bytes - decode_cost(SMALL, Scenario("base"), 0).bytes
    wrapped = get_peft_model(model, LoraConfig(r=16, target_modules=w1.PROJECTIONS))
    assert extra == 4 * 2 * wrapped.get_nb_trainable_parameters()[0]


def test_flops_are_what_torch_counts(model: LlamaForCausalLM):
    """Of the linears of a decode; and attention, whose scores and values torch counts alike."""
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(3, 1, dtype=torch.long))
    assert decode_cost(SMALL, Scenario("base", sequences=3), 1).flops == counter.get_total_flops()


def test_a_prefill_of_one_token_is_a_decode():
    one = Scenario("mixed", sequences=4, adapters=4, prompt_tokens=1)
    assert prefill_cost(SMALL, one).flops == decode_cost(SMALL, one, context=1).flops
    longer = prefill_cost(SMALL, Scenario("mixed", sequences=4, adapters=4, prompt_tokens=9))
    assert longer.flops > 8 * (prefill_cost(SMALL, one).flops - 2 * 4 * 64 * 128)


def test_the_cache_grows_with_the_context():
    """Keys and values, two bytes each, of every layer."""
    scenario = Scenario("base", sequences=5)
    more = decode_cost(SMALL, scenario, 11).bytes - decode_cost(SMALL, scenario, 10).bytes
    assert more == 5 * SMALL.layers * 2 * SMALL.kv_width * 2


def test_the_slower_of_reading_and_computing_counts():
    machine = Floor(read_gb_per_s=10, bf16_gflop_per_s=100, float32_gflop_per_s=60)
    assert Cost(bytes=10**10, flops=10**9).seconds(machine) == 1
    assert Cost(bytes=10**9, flops=3 * 10**11).seconds(machine) == 3


def test_w1_is_smollm2_135m():
    """The published number of parameters."""
    config = w1.config()
    shape = Shape(
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.vocab_size,
    )
    assert decode_cost(shape, Scenario("base", sequences=1), 0).bytes == 2 * 134_515_008


def test_measures_the_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(floor, "BUFFER_BYTES", 1 << 22)
    monkeypatch.setattr(floor, "MATMUL_SIZE", 64)
    threads = torch.get_num_threads()
    found = floor.measure(1)
    torch.set_num_threads(threads)
    assert found.read_gb_per_s > 0
    assert min(found.bf16_gflop_per_s, found.float32_gflop_per_s) > 0

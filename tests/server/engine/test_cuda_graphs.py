"""The engine as it runs on CUDA, but for the capture: Triton's kernels interpreted, on a CPU.

A graph is stood in for by a function that runs again on the tensors of its own plan, which is what
a replay may read. Against transformers + peft, as everywhere. On a GPU see tests/gpu.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.folder_source import FolderSource
from server.adapters.slots import SlotLease
from server.engine import engine as engine_module
from server.engine.cuda_graphs import GraphKey, StepGraphs, load, static_plan
from server.engine.engine import Engine
from server.engine.messages import EngineConfig, SamplingParams
from server.engine.plan import Chunk, StepPlan, build_plan
from server.engine.sequence import Sequence
from server.kernels.segments import NO_ADAPTER
from tests.support.adapters import RECIPES, make_adapter
from tests.support.exactness import assert_nothing_held, kv_bytes, wrong_answers
from tests.support.families import LLAMA, VOCAB, make_base
from tests.support.reference import Reference
from tests.support.traffic import Call, play, random_prompts

pytest.importorskip("triton", reason="triton is not installed")

# peft asks transformers 5 for a property that is deprecated there.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs it for real"),
]

SMALL = replace(LLAMA, config={**LLAMA.config, "num_hidden_layers": 1})
READS_ON_THE_HOST = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"}


class _NoReading(TorchDispatchMode):
    """Raises on what would make the host wait for a GPU, as a capture would."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name().split(".")[0] in READS_ON_THE_HOST:
            raise RuntimeError(f"{func.name()} reads the device")
        return func(*args, **(kwargs or {}))


class RunAgain:
    """Stands in for CudaCapture."""

    replays = 0

    def __init__(self, device: torch.device) -> None:
        RunAgain.replays = 0

    def __call__(self, forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def replay() -> Tensor:
            RunAgain.replays += 1
            return forward()

        with _NoReading():
            forward()
        return replay


def test_mixed_traffic_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts in chunks and mixed steps run as they come, decodes as graphs; one slot for two
    adapters, so that it is written again under graphs that are kept, those of each its own."""
    monkeypatch.setattr(engine_module, "triton_usable", lambda device: True)
    monkeypatch.setattr(engine_module, "CudaCapture", RunAgain)
    base = make_base(SMALL, tmp_path / "base")
    folders = {
        recipe.name: make_adapter(base, SMALL, recipe, tmp_path / recipe.name, seed=seed)
        for seed, recipe in enumerate((RECIPES[0], RECIPES[5]))
    }
    config = EngineConfig(
        model=str(base),
        blobs="",
        dtype="float32",
        device="cpu",
        max_resident_adapters=1,
        max_rank=24,
        kv_cache_bytes=kv_bytes(base, 20, 8),
        max_batch_tokens=24,
        block_size=8,
    )
    source = FolderSource(folders)
    engine = Engine(config, source)
    prompts = random_prompts(4, VOCAB, (3, 28), seed=1)
    names = [None, "all", "wide", "all"]
    calls = [
        Call(str(n), name, prompt, max_tokens=3 + n % 2, at_step=n)
        for n, (name, prompt) in enumerate(zip(names, prompts, strict=True))
    ]
    try:
        outcomes = play(engine, calls, source.digests)
        assert engine.stats().slot_evictions > 0
        graphs = engine._runner.graphs
        assert graphs is not None
        assert {16, 64} <= {key.rank_room for key in graphs._steps}
        assert_nothing_held(engine)
    finally:
        engine.close()
    assert not wrong_answers(calls, outcomes, Reference(base, folders))
    assert RunAgain.replays > 3


def test_a_step_is_copied_into_its_graphs_plan() -> None:
    first = _decodes([(5, 0), (40, 1), (17, NO_ADAPTER)])
    key = GraphKey.of(first)
    assert key == GraphKey(rows=4, blocks=16, rank_room=16)
    static = static_plan(key, first)
    load(static, first)
    load(static, second := _decodes([(9, 1), (3, 1), (4, 1), (100, NO_ADAPTER)]))
    assert GraphKey.of(second) == key
    load(static, third := _decodes([(30, 0), (6, 1), (8, 1)]))
    assert torch.equal(static.token_ids, third.token_ids)
    assert torch.equal(static.positions, third.positions)
    assert torch.equal(static.block_tables[:3, :4], third.block_tables)
    assert not static.block_tables[3].any()
    assert static.write_places.tolist() == [*third.write_places.tolist(), -1]
    assert static.segments.starts.tolist() == [0, 1, 3, 4, 4]
    assert static.segments.slots.tolist() == [0, 1, NO_ADAPTER, NO_ADAPTER]
    assert static.tokens == static.segments.tokens == 4


def test_only_plain_decodes_have_a_key() -> None:
    assert GraphKey.of(_decodes([(5, NO_ADAPTER)])) == GraphKey(1, 16, rank_room=0)
    assert GraphKey.of(_decodes([(300, NO_ADAPTER)])) == GraphKey(1, 64, rank_room=0)
    prompt = _sequence(9)
    assert GraphKey.of(_plan([Chunk(_sequence(5), 4, 1), Chunk(prompt, 0, 9)])) is None
    assert GraphKey.of(_plan([Chunk(prompt, 3, 1)])) is None, "its token is not the last"


def test_what_cannot_be_captured_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    tries = []

    def refuse(forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
        tries.append(forward)
        raise RuntimeError("it asks the device")

    graphs = StepGraphs(lambda plan: torch.zeros(1), refuse)
    plan = _decodes([(5, NO_ADAPTER)])
    assert graphs.run(plan) is None
    assert graphs.run(plan) is None
    assert len(tries) == 1
    assert "run without CUDA graphs: it asks the device" in caplog.text


def _sequence(length: int) -> Sequence:
    sampling = SamplingParams(1, temperature=0.0)
    tokens = list(range(1, length + 1))
    sequence = Sequence("s", 0, length, tokens, sampling, None, 0, 0.0)
    sequence.block_table = list(range(1, -(-length // 8) + 1))
    return sequence


def _plan(chunks: list[Chunk], slots: list[int] | None = None) -> StepPlan:
    return build_plan(chunks, [4, 4], 8, torch.device("cpu"))


def _decodes(sequences: list[tuple[int, int]]) -> StepPlan:
    """A step of decodes: `(length, slot)` of each sequence."""
    chunks = []
    for number, (length, slot) in enumerate(sequences):
        sequence = _sequence(length)
        sequence.lease = None if slot == NO_ADAPTER else SlotLease(slot, "", number)
        chunks.append(Chunk(sequence, length - 1, 1))
    return _plan(chunks)

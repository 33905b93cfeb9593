"""The engine on a GPU: every token is transformers + peft's, with CUDA graphs and without."""

from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)

from benchmarks.folder_source import FolderSource
from server.engine.engine import Engine
from server.engine.messages import EngineConfig, GenerationRequest, SamplingParams, TokenEvent
from tests.support.adapters import RECIPES, make_adapter
from tests.support.exactness import assert_nothing_held, kv_bytes, wrong_answers
from tests.support.families import FAMILIES, LLAMA, VOCAB, Family, make_base
from tests.support.reference import Reference
from tests.support.traffic import Mix, play, random_calls, random_prompts

# peft asks transformers 5 for a property that is deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

FORMS = {  # (kernels, CUDA graphs)
    "graphs": ("auto", True),
    "eager": ("auto", False),
    "torch": ("torch", False),
}


def config(base: Path, form: str, *, slots: int, blocks: int) -> EngineConfig:
    """Few slots, few tokens a step and few KV blocks: loading, chunking and pre-emption happen."""
    kernels, graphs = FORMS[form]
    return EngineConfig(
        model=str(base),
        blobs="",
        dtype="float32",
        device="cuda",
        max_resident_adapters=slots,
        max_rank=32,
        kv_cache_bytes=kv_bytes(base, blocks, 8),
        max_batch_tokens=40,
        max_sequences=16,
        block_size=8,
        kernels=kernels,
        cuda_graphs=graphs,
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_token_is_pefts(family: Family, form: str, tmp_path: Path) -> None:
    base = make_base(family, tmp_path / "base")
    folders = {
        recipe.name: make_adapter(base, family, recipe, tmp_path / recipe.name, seed=seed)
        for seed, recipe in enumerate(RECIPES[:4])
    }
    mix = Mix(
        requests=60,
        adapters=[None, *folders],
        prompts=random_prompts(40, VOCAB, (1, 66), seed=1),
        max_tokens=(1, 24),
        per_step=0.9,
    )
    source, calls = FolderSource(folders), random_calls(mix, seed=3)
    engine = Engine(config(base, form, slots=2, blocks=24), source)
    try:
        outcomes = play(engine, calls, source.digests)
        assert engine.stats().slot_evictions > 0
        assert engine.info.kernels == ("torch" if form == "torch" else "triton")
        graphs = engine._runner.graphs
        assert (graphs is not None) is (form == "graphs")
        if family is LLAMA and graphs is not None:
            assert len(graphs) > 3, "an architecture that can be captured was not"
        assert_nothing_held(engine)
    finally:
        engine.close()
    wrong = wrong_answers(calls, outcomes, Reference(base, folders))
    assert not wrong, f"{len(wrong)} of {len(calls)} differ:\n" + "\n".join(wrong[:20])


def test_the_seed_fixes_a_draw_whatever_else_runs(tmp_path: Path) -> None:
    """Alone, and beside seven others."""
    base = make_base(LLAMA, tmp_path / "base")
    engine = Engine(config(base, "graphs", slots=1, blocks=100), FolderSource({}))
    sampling = SamplingParams(20, temperature=1.0, top_p=0.95, seed=5, ignore_eos=True)

    def run(beside: int) -> list[int | None]:
        for number in range(beside + 1):
            engine.submit(GenerationRequest(str(number), (3, 1 + number, 4), sampling))
        tokens = []
        while engine.has_work():
            for event in engine.step():
                assert isinstance(event, TokenEvent), event
                if event.request_id == "0":
                    tokens.append(event.token_id)
        return tokens

    try:
        assert run(beside=0) == run(beside=7)
    finally:
        engine.close()

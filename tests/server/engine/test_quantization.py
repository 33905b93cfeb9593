"""`--quantization int8`: the answers are those of a base whose weights were rounded beforehand."""

from pathlib import Path
from typing import Any

import pytest
import torch

from adapters_store.errors import EngineStartFailed
from benchmarks.folder_source import FolderSource
from server.engine import base as base_module
from server.engine.base import load_base
from server.engine.engine import Engine
from server.engine.messages import EngineConfig
from server.kernels.cpu.native import load_native
from tests.support.adapters import RECIPES, make_adapter
from tests.support.exactness import wrong_answers
from tests.support.families import FAMILIES, LLAMA, VOCAB, Family, make_base
from tests.support.quantization import save_dequantized
from tests.support.reference import Reference
from tests.support.traffic import Mix, play, random_calls, random_prompts

# peft asks transformers 5 for a property that is deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
native = pytest.mark.skipif(not load_native(), reason="the native library is not built")
SERVED = [family for family in FAMILIES if family.name in ("llama", "gpt2", "gemma3", "qwen3")]


def config(base: Path, **options: Any) -> EngineConfig:
    return EngineConfig(
        **{"model": str(base), "blobs": "", "dtype": "float32", "device": "cpu", "threads": 1}
        | {"quantization": "int8", "kv_cache_bytes": 1 << 22, "max_rank": 32}
        | options
    )


@native
@pytest.mark.parametrize("family", SERVED, ids=lambda family: family.name)
def test_tokens_are_those_of_the_dequantised_base(family: Family, tmp_path: Path) -> None:
    base = make_base(family, tmp_path / "base")
    recipes = [recipe for recipe in RECIPES if recipe.name in ("all", "patterned")]
    folders = {
        recipe.name: make_adapter(base, family, recipe, tmp_path / recipe.name, seed=seed)
        for seed, recipe in enumerate(recipes)
    }
    mix = Mix(
        requests=24,
        adapters=[None, *folders],
        prompts=random_prompts(12, VOCAB, (1, 60), seed=2),
        max_tokens=(4, 20),
        per_step=0.7,
    )
    source, calls = FolderSource(folders), random_calls(mix, seed=3)
    engine = Engine(config(base), source)
    try:
        assert engine.info.quantization == "int8"
        outcomes = play(engine, calls, source.digests)
    finally:
        engine.close()
    rounded = save_dequantized(base, tmp_path / "rounded")
    wrong = wrong_answers(calls, outcomes, Reference(rounded, folders))
    assert not wrong, "\n".join(wrong[:20])
    # Else the test would pass without any quantisation.
    assert wrong_answers(calls, outcomes, Reference(base, folders))


@native
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_held_as_int8_alone(dtype: str, tmp_path: Path) -> None:
    folder = make_base(LLAMA, tmp_path)
    loaded = load_base(folder, config(folder, dtype=dtype), lambda _: None)
    for group in loaded.linears:
        assert group.packed is not None
        assert group.packed.job.scales
        for module in group.modules:
            weight = module.weight
            assert isinstance(weight, torch.Tensor)
            assert weight.untyped_storage().nbytes() == weight.element_size()


@pytest.mark.parametrize(
    ("options", "built", "remedy"),
    [
        ({"kernels": "torch"}, True, "--kernels torch turns off: leave that out"),
        ({"dtype": "float16"}, True, "have no float16: add --dtype float32"),
        ({"device": "meta"}, True, "do not run on meta: add --device cpu"),
        ({}, False, r"not built: install a C\+\+ compiler"),
    ],
)
def test_without_native_kernels_it_is_refused(
    options: dict[str, str],
    built: bool,
    remedy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not built:
        monkeypatch.setattr(base_module, "load_native", lambda: ())
    folder = make_base(LLAMA, tmp_path)
    with pytest.raises(EngineStartFailed, match="--quantization int8 needs .*" + remedy):
        load_base(folder, config(folder, **options), lambda _: None)

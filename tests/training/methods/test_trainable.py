"""Every method: what it trains, that the base stays as it is, that what is saved was trained.

Reference: PEFT itself, loading the saved folder onto a fresh base.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.training.methods.tiny import (
    BASE_NAME,
    FAMILY,
    METHODS,
    STEPS,
    attached,
    logits,
    make_base,
    plan_of,
    saved,
    train,
    trained_digest,
)
from training.methods.bottleneck import load_bottlenecks
from training.methods.trainable import (
    FAMILIES,
    Trainable,
    attach,
    detach,
    progress,
    resume,
    without_adapter,
)
from training.spec import PeftMethod

ROOT = Path(__file__).parents[3]
BEGIN_AS_BASE = tuple(method for method in METHODS if not method.endswith("-tuning"))
PLAIN = ("lora", "lora+", "pissa", "eva", "lora-ga", "adalora")


def test_every_method_of_a_request_is_here() -> None:
    assert set(FAMILIES) == set(PeftMethod.__args__)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in model.state_dict().items()}


def reloaded(trainable: Trainable, folder: Path, base: nn.Module) -> nn.Module:
    if trainable.plan.method == "bottleneck":
        return load_bottlenecks(base, folder)
    return PeftModel.from_pretrained(base, folder).eval()


def check(trainable: Trainable, folder: Path, fresh: nn.Module) -> None:
    """Trains; the base, and what was saved, are what they ought to be. `fresh`: the same base."""
    untrained, before = logits(fresh), weights(fresh)
    losses = train(trainable)
    assert losses[-1] < losses[0] - 0.01
    mine = logits(trainable.model)
    assert (mine - untrained).abs().max() > 5e-3
    with without_adapter(trainable):
        assert torch.equal(logits(trainable.model), untrained)
    assert torch.equal(logits(trainable.model), mine)
    loaded = logits(reloaded(trainable, saved(trainable, folder), fresh))
    torch.testing.assert_close(loaded, mine, rtol=1e-4, atol=1e-4)
    after = weights(detach(trainable))
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("method", METHODS)
def test_the_base_stays_and_what_is_saved_was_trained(method: str, tmp_path: Path) -> None:
    check(attached(method), tmp_path, make_base())


@pytest.mark.parametrize("method", METHODS)
def test_weights_stored_the_other_way_round(method: str, tmp_path: Path) -> None:
    family = FAMILY["gpt2"]
    plan = plan_of(method, family)
    base = make_base(family)
    assert base.config.tie_word_embeddings
    check(attached(method, base, targets=plan.targets), tmp_path, make_base(family))


@pytest.mark.parametrize("method", ["lora", "pissa", "eva", "lora-ga", "adalora", "ia3"])
def test_modules_saved_whole_and_trained_tokens(method: str, tmp_path: Path) -> None:
    more = {"modules_to_save": ("norm", "lm_head")}
    if method not in ("adalora", "ia3"):
        more["trainable_token_ids"] = (20, 21)
    trainable = attached(method, **more)
    check(trainable, tmp_path, make_base())
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert any("lm_head" in name for name in names)


@pytest.mark.parametrize(
    "more",
    [
        {"modules_to_save": ("embed_tokens",)},
        {"modules_to_save": ("lm_head",)},
        {"trainable_token_ids": (20, 21)},
    ],
)
def test_an_embedding_that_shares_its_weight_with_the_head(more: dict, tmp_path: Path) -> None:
    base = make_base(tie_word_embeddings=True)
    trainable = attached("lora", base, **more)
    check(trainable, tmp_path, make_base(tie_word_embeddings=True))


@pytest.mark.parametrize("method", BEGIN_AS_BASE)
def test_training_begins_where_the_base_is(method: str) -> None:
    trainable = attached(method)
    torch.testing.assert_close(logits(trainable.model), logits(make_base()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_only_what_is_trained_has_gradients(method: str) -> None:
    trainable = attached(method)
    model = trainable.model
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert 0 < trained < 0.7 * trainable.total
    if isinstance(model, PeftModel):
        assert (trainable.parameters, trainable.total) == model.get_nb_trainable_parameters()
    assert trainable.parameters == trained


@pytest.mark.parametrize("method", METHODS)
def test_a_half_precision_base_trains_in_float32(method: str) -> None:
    base = make_base(dtype=torch.bfloat16)
    before = weights(base)
    more = {"modules_to_save": ("embed_tokens", "norm")} if method == "lora" else {}
    trainable = attached(method, base, **more)
    kinds = {one.dtype for one in trainable.model.parameters() if one.requires_grad}
    assert kinds == {torch.float32}
    losses = train(trainable)
    assert losses[-1] < losses[0]
    assert all(torch.equal(one, before[name]) for name, one in weights(detach(trainable)).items())


@pytest.mark.parametrize("method", PLAIN)
def test_what_lora_can_say_is_saved_as_plain_lora(method: str, tmp_path: Path) -> None:
    trainable = attached(method)
    train(trainable)
    config = json.loads((saved(trainable, tmp_path) / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["init_lora_weights"] is True
    assert isinstance(config["lora_alpha"], int)
    for name in ("rank_pattern", "alpha_pattern", "eva_config", "lora_ga_config", "corda_config"):
        assert not config[name], name
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    ranks = {one.shape[0] for name, one in tensors.items() if name.endswith("lora_A.weight")}
    assert ranks == {config["r"]}


@pytest.mark.parametrize("method", METHODS)
def test_files_name_the_base_and_no_place(method: str, tmp_path: Path) -> None:
    folder = saved(attached(method), tmp_path / "adapter")
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    text = (folder / "adapter_config.json").read_text()
    assert json.loads(text)["base_model_name_or_path"] == BASE_NAME
    assert str(tmp_path) not in text and str(ROOT) not in text


def test_the_same_seed_gives_the_same_bytes_in_another_process() -> None:
    """Other hashes, so sets are in another order."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.methods.tiny", str(torch.get_num_threads())],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == {
        method: trained_digest(method) for method in METHODS
    }


def test_attaching_leaves_random_numbers_alone() -> None:
    base = make_base()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    attached("pissa", base)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("method", METHODS)
def test_training_goes_on_from_its_progress(method: str, tmp_path: Path) -> None:
    """What a checkpoint holds is all there is to know; the optimizer is new in both."""
    whole = attached(method)
    train(whole, last=3)
    kept = progress(whole)
    again = attached(method)
    resume(again, kept)
    first, second = (train(one, first=3) for one in (whole, again))
    assert first == second
    folders = [saved(one, tmp_path / name) for one, name in ((whole, "a"), (again, "b"))]
    files = [(folder / "adapter_model.safetensors").read_bytes() for folder in folders]
    assert files[0] == files[1]


def test_progress_of_another_plan_is_refused() -> None:
    kept = progress(attached("lora", rank=2))
    with pytest.raises(ValueError, match="another adapter"):
        resume(attached("lora"), kept)


def test_a_base_can_be_used_again(tmp_path: Path) -> None:
    base = make_base()
    for method in METHODS:
        base = detach(attached(method, base))
    check(attached("lora", base), tmp_path, make_base())


def test_full_trains_everything_and_saves_a_model(tmp_path: Path) -> None:
    base = make_base(dtype=torch.bfloat16)
    trainable = attach(base, plan_of("full"), seed=0, total_steps=STEPS)
    assert trainable.parameters == trainable.total == sum(one.numel() for one in base.parameters())
    losses = train(trainable)
    assert losses[-1] < losses[0]
    again = type(base).from_pretrained(saved(trainable, tmp_path), dtype=torch.float32)
    torch.testing.assert_close(logits(again), logits(trainable.model))
    with pytest.raises(ValueError, match="no base"):
        without_adapter(trainable)

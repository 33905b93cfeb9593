"""QLoRA on a base that bitsandbytes holds in 4 bits; skipped where it is not installed."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.training.methods.tiny import FAMILY, attached, logits, make_base, plan_of, saved, train
from training.methods.quantized import quantization_config
from training.methods.trainable import detach, without_adapter


def test_no_other_method_quantizes() -> None:
    assert quantization_config(plan_of("lora")) is None


def test_a_base_that_is_not_quantized_is_our_fault() -> None:
    with pytest.raises(ValueError, match="quantization_config"):
        attached("qlora")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pytest.importorskip("bitsandbytes")
    make_base(FAMILY["llama"], hidden_size=128, intermediate_size=256).save_pretrained(tmp_path)
    return tmp_path


def load(folder: Path) -> PreTrainedModel:
    plan = plan_of("qlora")
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=quantization_config(plan), dtype=torch.float32
    )


@pytest.mark.filterwarnings("default")  # bitsandbytes' own
def test_the_base_stays_and_what_is_saved_was_trained(folder: Path) -> None:
    base = load(folder)
    # Not its quantisation's constants: on a CPU, bitsandbytes lays them out anew in eval().
    before = {name: one.detach().clone() for name, one in base.named_parameters()}
    assert any(one.dtype == torch.uint8 for one in before.values())
    trainable = attached("qlora", base, dropout=0.1)
    assert (trainable.parameters, trainable.total) == trainable.model.get_nb_trainable_parameters()
    losses = train(trainable)
    assert losses[-1] < losses[0]
    mine = logits(trainable.model)
    with without_adapter(trainable):
        torch.testing.assert_close(logits(trainable.model), logits(load(folder)))
    kept = saved(trainable, folder / "adapter")
    loaded = PeftModel.from_pretrained(load(folder), kept).eval()
    torch.testing.assert_close(logits(loaded), mine, rtol=1e-3, atol=1e-3)
    after = dict(detach(trainable).named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)

"""The script runs from scratch, continues where it was cut off, and what it makes exports."""

import filecmp
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import demo
from demo.checkpoint import load_checkpoint, save_checkpoint
from demo.export import export
from demo.make import _parse, _quick, make
from demo.pretrain import pretrain
from demo.tokenizer import learn_tokenizer, tokenizer_texts


def test_quick_run_makes_everything_and_is_not_repeated(tmp_path):
    arguments = ["--quick", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    make(_parse(arguments))
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {"artefacts", "RESULTS.md", "train.log"}
    assert {p.name for p in (out / "artefacts" / "adapters").iterdir()} == set(demo.EXAMPLES)
    made = (tmp_path / "work" / "base" / "model.safetensors").stat().st_mtime_ns
    make(_parse(arguments))
    assert (tmp_path / "work" / "base" / "model.safetensors").stat().st_mtime_ns == made


def test_pretraining_cut_off_ends_as_if_it_had_not_been(tmp_path):
    plan = replace(_quick(_parse([])).pretrain, steps=4, checkpoint_every=2)
    tokenizer = learn_tokenizer(tokenizer_texts(0, 100), vocab_size=400)
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = pretrain(tokenizer, plan, tmp_path / "whole", lambda step, loss: None)

    def cut_off(step: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(tokenizer, plan, tmp_path / "cut", cut_off)
    steps = []
    resumed = pretrain(tokenizer, plan, tmp_path / "cut", lambda step, loss: steps.append(step))
    assert steps == [3, 4]
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, msg=name)


def test_checkpoint_brings_back_weights_and_optimiser(tmp_path):
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = LlamaForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.tensor([[1, 2]]), labels=torch.tensor([[1, 2]])).loss.backward()
    optimiser.step()
    save_checkpoint(tmp_path / "c.safetensors", model, [optimiser], step=5)
    other = LlamaForCausalLM(config)
    fresh = torch.optim.AdamW(other.parameters())
    assert load_checkpoint(tmp_path / "c.safetensors", other, [fresh]) == 5
    torch.testing.assert_close(other.state_dict(), model.state_dict())
    torch.testing.assert_close(fresh.state_dict(), optimiser.state_dict())


def test_checkpoint_does_not_collide_with_an_unfinished_stage(tmp_path):
    (tmp_path / "adapter-x.partial").mkdir()
    model = torch.nn.Linear(2, 2)
    save_checkpoint(tmp_path / "adapter-x.safetensors", model, [], step=1)
    assert load_checkpoint(tmp_path / "adapter-x.safetensors", model, []) == 1


def test_export_copies_ordinary_folders(tmp_path):
    export(tmp_path)
    same = filecmp.dircmp(demo.base_path(), tmp_path / "base")
    assert not same.left_only and not same.right_only and not same.diff_files
    assert {p.name for p in (tmp_path / "adapters").iterdir()} == set(demo.EXAMPLES)


def test_export_overwrites_nothing(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="nothing was written"):
        export(tmp_path)
    assert not (tmp_path / "adapters").exists()

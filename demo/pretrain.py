"""Pre-trains the base: Llama from random weights on the demo's text.

Here: the architecture, batches, the optimisers, checkpoints of this one stage.
Not here: what the text says, adapters.

Batches depend on the seed and the step alone, so a run that is cut off goes on as if it had not
been. What the adapters need of so small a base is that it finds a word in a message and says it
again. Three things teach it that early: chats give a loss on the replies only, a row's documents
do not see each other, and the upper layers start out as copiers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from demo.checkpoint import load_checkpoint, save_checkpoint
from demo.text import Messages, documents
from demo.tokenizer import ASSISTANT, END, save_tokenizer

IGNORED = -100  # the label that transformers leaves out of the loss


@dataclass(frozen=True, slots=True)
class PretrainPlan:
    """How long and how fast; the defaults are what made the committed base."""

    seed: int
    steps: int = 1800
    rows: int = 8
    row_tokens: int = 256
    muon_lr: float = 0.02
    adam_lr: float = 2e-3
    warmup_steps: int = 50
    decay_share: float = 0.4  # the last share of the steps, over which the rate falls to 5 %
    checkpoint_every: int = 100


Progress = Callable[[int, float], None]  # called with the step and its loss


def base_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Llama, 2.6 million parameters, grouped-query attention, tied embeddings."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def pretrain(
    tokenizer: PreTrainedTokenizerFast, plan: PretrainPlan, work: Path, progress: Progress
) -> LlamaForCausalLM:
    """The trained base, float32; continues from `work` if a checkpoint lies there."""
    torch.manual_seed(plan.seed)
    model = LlamaForCausalLM(base_config(tokenizer)).train()
    favour_copying(model)
    optimisers = _optimisers(model, plan)
    checkpoint = work / "pretrain.safetensors"
    first = load_checkpoint(checkpoint, model, optimisers) if checkpoint.exists() else 0
    for step in range(first, plan.steps):
        _set_rates(optimisers, _rate(plan, step))
        loss = _train_step(model, optimisers, _batch(tokenizer, plan, step))
        progress(step + 1, loss)
        if (step + 1) % plan.checkpoint_every == 0:
            save_checkpoint(checkpoint, model, optimisers, step + 1)
    return model.eval()


@torch.no_grad()
def favour_copying(model: LlamaForCausalLM) -> None:
    """Starts the upper half's attention so that a token attended to becomes likelier itself.

    v_proj gets orthogonal rows and o_proj their transpose, per head; as the embedding is tied, the
    logits then lean towards the tokens attended to, and where to look is learnt from the first
    step on. The idea is that of mimetic initialisation (Trockman and Kolter, arXiv:2305.09828).
    """
    config = model.config
    groups = config.num_attention_heads // config.num_key_value_heads
    for layer in model.model.layers[config.num_hidden_layers // 2 :]:
        attention = layer.self_attn
        value = torch.nn.init.orthogonal_(attention.v_proj.weight)  # [kv_heads * head_dim, hidden]
        heads = value.view(config.num_key_value_heads, config.head_dim, -1)
        heads = heads.repeat_interleave(groups, dim=0)  # [heads, head_dim, hidden]
        attention.o_proj.weight.copy_(0.1 * heads.flatten(0, 1).T)  # [hidden, heads * head_dim]
        attention.v_proj.weight.mul_(0.4)


def _token_stream(
    tokenizer: PreTrainedTokenizerFast, rng: Random
) -> Iterator[tuple[int, int, int, int]]:
    """Documents end to end, as token, label, number of the document, position in it.

    Labels leave out what users and system messages say.
    """
    assistant, end = tokenizer.convert_tokens_to_ids([ASSISTANT, END])
    for number, document in enumerate(documents(rng)):
        is_prose = isinstance(document, str)
        learns = is_prose
        tokens = tokenizer.encode(as_text(tokenizer, document)) + [end] * is_prose
        for position, token in enumerate(tokens):
            yield token, token if learns else IGNORED, number, position
            if token == assistant:
                learns = True
            elif token == end:
                learns = False


def as_text(tokenizer: PreTrainedTokenizerFast, document: str | Messages) -> str:
    """A document as the base reads it: prose as it is, a chat through the template."""
    if isinstance(document, str):
        return document
    return tokenizer.apply_chat_template(document, tokenize=False)


def _batch(tokenizer: PreTrainedTokenizerFast, plan: PretrainPlan, step: int) -> dict[str, Tensor]:
    """One step's model arguments.

    input_ids, labels, position_ids [rows, row_tokens]; attention_mask [rows, 1, row_tokens,
    row_tokens], true where a token sees another: one before it in the same document.
    """
    stream = _token_stream(tokenizer, Random(f"{plan.seed} {step}"))
    shape = (plan.rows, plan.row_tokens, 4)
    flat = list(islice(stream, plan.rows * plan.row_tokens))
    inputs, labels, numbers, positions = torch.tensor(flat).view(shape).unbind(-1)
    same = numbers[:, :, None] == numbers[:, None, :]
    return {
        "input_ids": inputs,
        "labels": labels,
        "position_ids": positions,
        "attention_mask": same.tril()[:, None],
    }


def _optimisers(model: LlamaForCausalLM, plan: PretrainPlan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    named = list(model.named_parameters())
    inner = [p for name, p in named if p.ndim == 2 and "embed_tokens" not in name]
    outer = [p for name, p in named if p.ndim != 2 or "embed_tokens" in name]
    return [
        torch.optim.Muon(inner, lr=plan.muon_lr, weight_decay=0.01),
        torch.optim.AdamW(outer, lr=plan.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _rate(plan: PretrainPlan, step: int) -> float:
    """The share of the full learning rate at a step: up, level, down to 0.05."""
    decay_steps = max(1, plan.decay_share * plan.steps)
    falling = 0.05 + 0.95 * (plan.steps - step) / decay_steps
    return min((step + 1) / plan.warmup_steps, 1.0, falling)


def _set_rates(optimisers: list[torch.optim.Optimizer], rate: float) -> None:
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group.setdefault("full_lr", group["lr"])
            group["lr"] = group["full_lr"] * rate


def _train_step(
    model: LlamaForCausalLM, optimisers: list[torch.optim.Optimizer], batch: dict[str, Tensor]
) -> float:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimiser in optimisers:
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return loss.item()


def save_base(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """An ordinary transformers folder, bf16."""
    model.to(torch.bfloat16).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    generation = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    generation.save_pretrained(folder)

"""What `--quantization int8` stands for, in plain torch: weights rounded, then ordinary again.

Nothing of ours is imported here, so nothing of ours can agree with itself.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D


def dequantized(weight: Tensor) -> Tensor:
    """weight [out, in], each output rounded to 255 steps from -max|w| to max|w|; float64."""
    scale = weight.float().abs().amax(1, keepdim=True) / 127
    steps = torch.where(scale > 0, weight.float() / scale, 0).round()
    return steps.double() * scale.double()


def save_dequantized(base: Path, to: Path) -> Path:
    """`base` with every linear module's weight dequantised, in float32; its head is not tied."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    head = model.get_output_embeddings()
    assert head is not None
    head.weight = nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Conv1D):
                module.weight.copy_(dequantized(module.weight.T).T)
            elif isinstance(module, nn.Linear):
                module.weight.copy_(dequantized(module.weight))
    model.save_pretrained(to)
    return to

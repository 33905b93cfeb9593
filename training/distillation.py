"""Learning from a teacher: what another model thinks of each next token, beside the token itself.

Here: Teacher, open_teacher, distillation_loss, Distilling. Not here: which jobs may teach
(teacher_jobs.py), the run (loop.py).

Source: Hinton et al. 2015, arXiv:1503.02531. Both models' logits are divided by a temperature T,
and the gap between the two distributions is multiplied by T², so that its gradients keep their size
whatever T is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from adapters_store.errors import InvalidRequest
from adapters_store.store import AdapterStore
from training.base import BaseFolder, load_model
from training.evaluation import View
from training.jobs import JobBook
from training.plan import TeacherPlan
from training.teacher_jobs import teacher_job, unpacked
from training.tokens import NOT_LEARNED
from training.trial import tuned


@dataclass(frozen=True, slots=True)
class Teacher:
    """A frozen model on the student's device, and how much is made of what it says."""

    view: View
    weight: float  # of what it says, 0 to 1; the rest is the examples' own
    temperature: float

    @property
    def bytes(self) -> int:
        """Of its weights, which the device holds beside the student's while training."""
        return sum(one.numel() * one.element_size() for one in self.view.model.parameters())


def open_teacher(
    plan: TeacherPlan,
    *,
    store: AdapterStore,
    base: BaseFolder,
    tokenizer: PreTrainedTokenizerBase,
    named: Mapping[str, Path],
    owner: str,
    folder: Path,
) -> Teacher:
    """`named`: the larger models that the worker was started with. `folder` takes a job's files.

    Raises InvalidRequest, naming the field: no such teacher, or one whose tokens are others.
    """
    if plan.job is not None:
        job = teacher_job(JobBook(store.database, base=base.name), plan.job, owner=owner)
        unpacked(store, job, folder)
        view = tuned(base, folder)
    else:
        assert plan.name is not None, "the spec wants one of the two"
        view = View(load_model(_larger(plan.name, base, tokenizer, named)))
    view.model.eval().requires_grad_(False)
    return Teacher(view, plan.weight, plan.temperature)


def _larger(
    name: str, base: BaseFolder, tokenizer: PreTrainedTokenizerBase, named: Mapping[str, Path]
) -> BaseFolder:
    """The folder of a model that the worker knows by this name, if it has the same tokens."""
    if name not in named:
        known = ", ".join(sorted(named)) or "none"
        raise InvalidRequest(
            f"adapterd.teacher.name: this worker has no teacher {name!r} (it has {known}); start "
            f"it with --teacher {name}=MODEL",
            param="adapterd.teacher.name",
        )
    teacher = BaseFolder(name, named[name], base.device)
    if teacher.tokenizer().get_vocab() != tokenizer.get_vocab():
        raise InvalidRequest(
            f"adapterd.teacher: {name!r} has another vocabulary than {base.name!r}, so what it "
            "thinks of its tokens says nothing of the base's; use a teacher of the same family, "
            "or train on answers that it has written",
            param="adapterd.teacher",
        )
    return teacher


def distillation_loss(
    student: Tensor, teacher: Tensor, wanted: Tensor, *, weight: float, temperature: float
) -> Tensor:
    """(1 - weight) · cross-entropy + weight · T² · KL(teacher_T || student_T), summed.

    student, teacher [positions, vocabulary] logits, float32; wanted [positions] int64. Of one
    family, models may fill up their vocabularies to different widths: the gap is then taken over
    the columns that both have, which are all that stand for a token.
    """
    width = min(student.shape[1], teacher.shape[1])
    hard = nn.functional.cross_entropy(student, wanted, reduction="sum")
    soft = nn.functional.kl_div(
        (student[:, :width] / temperature).log_softmax(-1),
        (teacher[:, :width] / temperature).log_softmax(-1),
        reduction="sum",
        log_target=True,
    )
    return (1 - weight) * hard + weight * temperature**2 * soft


class Distilling:
    """A mixin over trl's SFTTrainer: in training, the loss has the teacher's part.

    Held-out losses stay plain cross-entropy, so that runs with and without a teacher compare.
    """

    def __init__(self, *arguments: Any, teacher: Teacher, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._teacher = teacher

    def compute_loss(
        self: Any,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        if not self.model.training:
            return super().compute_loss(  # type: ignore[misc]  # trl's
                model, inputs, return_outputs, num_items_in_batch
            )
        labels = inputs["labels"][:, 1:]
        learned = labels != NOT_LEARNED  # [rows, tokens - 1]
        asked = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        routed = {"output_router_logits": True} if self.aux_loss_enabled else {}
        outputs = model(**asked, use_cache=False, **routed)
        student, wanted = _predictions(outputs.logits, learned), labels[learned]
        with torch.no_grad(), self._teacher.view.entered():
            said = self._teacher.view.model(**asked, use_cache=False).logits
        count = len(wanted) if num_items_in_batch is None else num_items_in_batch
        loss = distillation_loss(
            student,
            _predictions(said, learned),
            wanted,
            weight=self._teacher.weight,
            temperature=self._teacher.temperature,
        ) / torch.as_tensor(count).clamp(min=1)
        if self.aux_loss_enabled:  # of a mixture of experts; a mean, shared out as trl does
            parts = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / parts
        self._measure(student.detach(), wanted, asked["attention_mask"])
        return (loss, outputs) if return_outputs else loss

    def _measure(self: Any, student: Tensor, wanted: Tensor, mask: Tensor) -> None:
        """Tells trl's log what trl's own loss does."""
        metrics = self._metrics["train"]
        logs = student.log_softmax(-1)
        if len(wanted):
            metrics["entropy"].append(-(logs.exp() * logs).sum(-1).mean().item())
            metrics["mean_token_accuracy"].append(
                (student.argmax(-1) == wanted).float().mean().item()
            )
        self._total_train_tokens += mask.sum().item()
        metrics["num_tokens"] = [self._total_train_tokens]


def _predictions(logits: Tensor, learned: Tensor) -> Tensor:
    """[learned tokens, vocabulary], float32, of [rows, tokens, vocabulary]: what predicts them.

    Virtual tokens, which come first, are left out.
    """
    return logits[:, -learned.shape[1] - 1 : -1][learned].float()

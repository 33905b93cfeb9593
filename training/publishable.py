"""Which adapters that can be trained can also be published: those of a kind that is served.

Here: the rule, for who takes a job and for who ends one. Not here: whether one adapter's tensors
fit (the server's check says so), publishing.
"""

from typing import Literal

from adapters_store.errors import UnsupportedParameter
from training.spec import Options, Peft, PeftMethod

SERVED: frozenset[PeftMethod] = frozenset(
    {"lora", "rslora", "lora+", "pissa", "eva", "lora-ga", "qlora"}
)
"""Methods that end as a LoRA's two matrices a module, and a scale."""


def unserved(peft: Peft) -> Literal["method", "modules_to_save", "trainable_tokens"] | None:
    """The field for which what comes of `peft` is not served; None: it is."""
    if peft.method not in SERVED:
        return "method"
    if peft.modules_to_save:
        return "modules_to_save"
    return "trainable_tokens" if peft.trainable_tokens else None


def require_publishable(options: Options) -> None:
    """Raises UnsupportedParameter, with the remedy, if a version is asked for and cannot be."""
    if options.publish and options.task == "classification":
        raise UnsupportedParameter(
            "adapterd.task: 'classification' makes a head of classes, which this server cannot "
            'serve yet; send "publish": false in adapterd to get it as the job\'s result file',
            param="adapterd.task",
        )
    field = unserved(options.peft)
    if field is None or not options.publish:
        return
    what = f"{options.peft.method!r} trains" if field == "method" else f"{field} makes"
    raise UnsupportedParameter(
        f"adapterd.peft.{field}: {what} what this server cannot serve; send "
        '"publish": false in adapterd to get it as the job\'s result file',
        param=f"adapterd.peft.{field}",
    )

"""Which fields of a request each method takes, and its defaults where the request says nothing.

Here: check_options, check_plan, named_targets, default_targets, default_rank, default_dropout. Not
here: what depends on the base's weights (the methods' own modules).
"""

from typing import TYPE_CHECKING

from adapters_store.errors import InvalidRequest
from training.spec import Options, Peft, PeftMethod

if TYPE_CHECKING:
    from training.plan import AdapterPlan

_LOW_RANK = frozenset("rank alpha dropout targets modules_to_save trainable_tokens".split())
_PROMPT = frozenset({"virtual_tokens"})
TAKES: dict[PeftMethod, frozenset[str]] = {
    "lora": _LOW_RANK,
    "rslora": _LOW_RANK,
    "dora": _LOW_RANK,
    "lora+": _LOW_RANK,
    "pissa": _LOW_RANK,
    "eva": _LOW_RANK,
    "lora-ga": _LOW_RANK,
    "qlora": _LOW_RANK,
    "adalora": _LOW_RANK - {"trainable_tokens"},
    "ia3": frozenset({"targets", "modules_to_save"}),
    "prompt-tuning": _PROMPT,
    "prefix-tuning": _PROMPT,
    "p-tuning": _PROMPT,
    "bottleneck": frozenset({"rank", "dropout"}),
    "full": frozenset(),
}
"""Fields of `adapterd.peft`; whatever else is said there would be ignored, so it is refused."""

CLASSIFIES: frozenset[PeftMethod] = frozenset({"lora", "rslora", "dora", "lora+", "full"})
"""Methods that know what to do with a new head: they train it whole, and save it."""

PROMPTS = ("prompt-tuning", "prefix-tuning", "p-tuning")

KEYS_VALUES = frozenset(
    "k_proj v_proj qkv_proj query_key_value c_attn Wqkv key value key_proj value_proj".split()
)
DOWN = frozenset("down_proj dense_4h_to_h c_proj fc2 fc_out w2 wo".split())
"""Leaf names of what IA3 rescales: keys and values, and what leads out of an MLP."""

ATTENTION = frozenset(
    "q_proj k_proj v_proj o_proj out_proj qkv_proj query_key_value dense c_attn Wqkv "
    "query key value query_proj key_proj value_proj".split()
)
"""Leaf names of attention's linear modules; no MLP has them."""


def check_options(options: Options, *, preference: bool = False) -> None:
    """Raises InvalidRequest, naming the field, if a method is asked for what it does not have.

    `preference`: whether it is to learn from preferences (DPO).
    """
    peft, method = options.peft, options.peft.method
    for field in sorted(peft.model_fields_set - {"method"}):
        if getattr(peft, field) not in (None, ()):
            _check_taken(method, field)
    if method == "adalora" and preference:
        # DPO's trainer keeps a frozen copy as its reference; AdaLoRA takes no second adapter.
        raise InvalidRequest(
            "adapterd.peft.method: adalora does not learn from preferences; use lora",
            param="adapterd.peft.method",
        )
    if options.task == "classification":
        _check_classification(peft)
    if method in PROMPTS and options.packing:
        raise InvalidRequest(
            f"adapterd.packing: {method} puts its virtual tokens before a row, so only the row's "
            "first example would see them; leave packing out",
            param="adapterd.packing",
        )
    if method == "prefix-tuning" and options.gradient_checkpointing:
        raise checkpointed_prefix()


def _check_classification(peft: Peft) -> None:
    if peft.method not in CLASSIFIES:
        raise InvalidRequest(
            f"adapterd.peft.method: {peft.method} does not learn classes; use one of "
            f"{', '.join(sorted(CLASSIFIES))}",
            param="adapterd.peft.method",
        )
    for field in ("modules_to_save", "trainable_tokens"):
        if getattr(peft, field):
            raise InvalidRequest(
                f"adapterd.peft.{field}: with classes the head alone is trained beside the "
                "adapter; leave it out",
                param=f"adapterd.peft.{field}",
            )


def check_plan(plan: "AdapterPlan") -> None:
    """The same of a plan, as far as it still tells. Raises InvalidRequest."""
    if plan.trainable_token_ids:
        _check_taken(plan.method, "trainable_tokens")
    if plan.modules_to_save:
        _check_taken(plan.method, "modules_to_save")


def checkpointed_prefix() -> InvalidRequest:
    """Prefix tuning hands its prefix on as a KV cache, which checkpointed layers do not take."""
    return InvalidRequest(
        "adapterd.gradient_checkpointing: prefix-tuning does not work with it; leave it out, "
        "or use prompt-tuning",
        param="adapterd.gradient_checkpointing",
    )


def _check_taken(method: PeftMethod, field: str) -> None:
    if field not in TAKES[method]:
        others = ", ".join(name for name, taken in TAKES.items() if field in taken)
        raise InvalidRequest(
            f"adapterd.peft.{field}: the method {method!r} has none; leave it out, or use one of "
            f"{others}",
            param=f"adapterd.peft.{field}",
        )


def named_targets(targets: tuple[str, ...], linears: tuple[str, ...]) -> tuple[str, ...]:
    """`targets` with those that "attention" stands for. Raises InvalidRequest, naming the field."""
    short = "attention" in targets and "attention" not in linears
    found = [leaf for leaf in linears if leaf in ATTENTION] if short else []
    leaves = dict.fromkeys(
        [*(leaf for leaf in targets if not short or leaf != "attention"), *found]
    )
    unknown = [leaf for leaf in leaves if leaf not in linears]
    if unknown or (short and not found):
        what = repr(unknown[0]) if unknown else "known to be of its attention"
        raise InvalidRequest(
            f"adapterd.peft.targets: the base has no linear module {what}; it has "
            f"{', '.join(linears)}",
            param="adapterd.peft.targets",
        )
    return tuple(leaves)


def default_targets(method: PeftMethod, linears: tuple[str, ...]) -> tuple[str, ...]:
    """Of a base's linears: all (QLoRA, arXiv:2305.14314, section 4); IA3's are keys, values and
    the way out of the MLP (arXiv:2205.05638, section 3.3), where they go by known names.
    """
    if method != "ia3":
        return linears
    return tuple(leaf for leaf in linears if leaf in KEYS_VALUES | DOWN) or linears


def default_rank(method: PeftMethod, width: int) -> int:
    """16; a bottleneck has a 16th of the base's width (Pfeiffer et al. 2020, arXiv:2005.00247)."""
    return max(4, width // 16) if method == "bottleneck" else 16


def default_dropout(method: PeftMethod, width: int) -> float:
    """None, but QLoRA's: 0.1 for bases up to 13B (5,120 wide), 0.05 above (its appendix B.2)."""
    if method != "qlora":
        return 0.0
    return 0.1 if width <= 5120 else 0.05

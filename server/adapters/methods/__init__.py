"""The kinds of adapter that are served, by PEFT's name for them. A new kind is one line here."""

from adapters_store.content import AdapterContent, AdapterFacts, BaseModel
from adapters_store.errors import InvalidAdapter, UnsupportedAdapter
from server.adapters.methods.base import AdapterMethod
from server.adapters.methods.lora import LoraMethod
from server.adapters.slot_rows import SlotLimits

METHODS: dict[str, AdapterMethod] = {method.peft_type: method for method in (LoraMethod(),)}


def method_of(content: AdapterContent) -> AdapterMethod:
    """The kind of this adapter. Raises InvalidAdapter, UnsupportedAdapter."""
    peft_type = content.config.get("peft_type")
    if not isinstance(peft_type, str):
        raise InvalidAdapter(
            "adapter_config.json has no 'peft_type'; save the adapter with PEFT's save_pretrained"
        )
    if peft_type not in METHODS:
        served = ", ".join(sorted(METHODS))
        raise UnsupportedAdapter(
            f"adapter_config.json: peft_type {peft_type!r} is not served here; served: {served}"
        )
    return METHODS[peft_type]


def check(content: AdapterContent, base: BaseModel, *, limits: SlotLimits) -> AdapterFacts:
    """Whether this adapter can be served on this base with such slots, and what it is.

    Raises InvalidAdapter or UnsupportedAdapter, naming the tensor or key and the remedy.
    """
    return method_of(content).check(content, base, limits=limits)

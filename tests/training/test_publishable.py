"""What is published is served; everything else is refused with a remedy, before it is trained."""

from typing import Any, get_args

import pytest

from adapters_store.errors import UnsupportedParameter
from training.publishable import SERVED, require_publishable, unserved
from training.spec import Options, Peft, PeftMethod


@pytest.mark.parametrize("method", get_args(PeftMethod))
def test_every_method_is_served_or_refused(method: PeftMethod) -> None:
    peft = Peft(method=method)
    require_publishable(Options(peft=peft, publish=False))
    if method in SERVED:
        assert unserved(peft) is None
        require_publishable(Options(peft=peft))
    else:
        with pytest.raises(UnsupportedParameter, match='"publish": false') as refused:
            require_publishable(Options(peft=peft))
        assert refused.value.param == "adapterd.peft.method"


@pytest.mark.parametrize("field", ["modules_to_save", "trainable_tokens"])
def test_parts_that_are_no_lora_are_not_served(field: str) -> None:
    more: dict[str, Any] = {field: ("x",)}
    assert unserved(Peft(**more)) == field
    with pytest.raises(UnsupportedParameter) as refused:
        require_publishable(Options(peft=Peft(**more)))
    assert refused.value.param == f"adapterd.peft.{field}"


def test_full_fine_tunes_are_never_served() -> None:
    assert "full" not in SERVED


def test_classes_are_not_served() -> None:
    require_publishable(Options(task="classification", publish=False))
    with pytest.raises(UnsupportedParameter, match='"publish": false') as refused:
        require_publishable(Options(task="classification"))
    assert refused.value.param == "adapterd.task"

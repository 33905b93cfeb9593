"""What lies in the stacks when adapters of all ranks have come and gone."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from adapters_store.content import LinearShape
from server.adapters.methods.base import HostAdapter
from server.adapters.methods.lora import LoraMethod
from server.adapters.slot_rows import SlotLimits
from server.adapters.slots import SlotPlace, SlotTable
from server.kernels.backend import ReferenceBackend

SHAPES = {"q": LinearShape(6, 4), "v": LinearShape(6, 2)}
LIMITS = SlotLimits(slots=4, rows=48, row_bytes=1)


class Linears:
    """Two modules that read one input."""

    names, shapes = tuple(SHAPES), tuple(SHAPES.values())

    def on_output(
        self, listener: Callable[[Tensor, Sequence[Tensor]], None], hook: Any | None
    ) -> None:
        pass


def adapter(digest: str, ranks: dict[str, int]) -> HostAdapter:
    """One that would be seen anywhere: every third number is NaN."""
    layout = {}
    for name, rank in ranks.items():
        pair = torch.ones(rank, SHAPES[name].in_features), torch.ones(rank, 4 if name == "q" else 2)
        for tensor in pair:
            tensor.flatten()[::3] = float("nan")
        layout[name] = pair
    return HostAdapter(digest, "lora", max(ranks.values()), 0, layout)


def test_every_slot_has_its_adapters_rows_and_zeros_above_whatever_lay_there_before() -> None:
    draw, table = random.Random(0), SlotTable(LIMITS.slots, LIMITS.rows)
    bound = LoraMethod().bind(
        [Linears()],
        limits=LIMITS,
        dtype=torch.float32,
        device=torch.device("cpu"),
        backend=ReferenceBackend(),
    )
    places: dict[str, tuple[SlotPlace, HostAdapter | None]] = {}
    for number in range(200):
        names = draw.choice([["q"], ["v"], ["q", "v"]])
        one = adapter(f"d{number}", {name: draw.randint(1, 40) for name in names})
        place = table.assign(one.digest, one.rank)
        assert place is not None
        if draw.random() < 0.2:  # an adapter of another kind
            bound.clear(place)
            places[one.digest] = place, None
        else:
            bound.write(place, one)
            places[one.digest] = place, one
        for digest in table.resident:
            there, held = places[digest]
            assert bound._starts.host[there.slot] == there.rows.start
            for name, module in bound._modules.items():
                a, b = (None, None) if held is None else held.layout.get(name, (None, None))
                assert int(module.stack.ranks[there.slot]) == (0 if a is None else len(a))
                assert_holds(module.stack.a[there.rows.start : there.rows.stop], a)
                assert_holds(module.stack.b[there.rows.start : there.rows.stop], b)
    assert bound._starts.device.tolist() == bound._starts.host


def assert_holds(rows: Tensor, own: Tensor | None) -> None:
    wanted = torch.zeros_like(rows)
    if own is not None:
        wanted[: len(own)] = own
    torch.testing.assert_close(rows, wanted, equal_nan=True)

"""For every test: no setting from outside, and slow ones only when asked for."""

import os

import pytest
import torch

# Where there is no GPU, Triton's kernels are interpreted. The flag is read when they are decorated,
# so it must be set before anything imports triton, as peft does.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

KEPT = ("ADAPTERD_TEST_ALL", "ADAPTERD_DATA")  # of the tests themselves; no settings


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("ADAPTERD_TEST_ALL") == "1":
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: set ADAPTERD_TEST_ALL=1"))


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("ADAPTERD_") and name not in KEPT:
            monkeypatch.delenv(name)

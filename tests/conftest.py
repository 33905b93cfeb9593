"""For every test: no setting from outside, and slow ones only when asked for."""

import os

import pytest

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

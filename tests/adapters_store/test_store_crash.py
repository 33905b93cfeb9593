import json
import os
import subprocess
import sys

from adapters_store.store import AdapterStore
from tests.adapters_store.crash_driver import BASE, verify

ROUNDS = 200 if os.environ.get("ADAPTERD_TEST_ALL") else 40


def test_what_was_acknowledged_survives_sigkill_and_nothing_is_half_visible(tmp_path):
    """Every round's child also verifies all promises so far, on what the kill before left."""
    driver = [sys.executable, "-m", "tests.adapters_store.crash_driver"]
    finished = subprocess.run(
        [*driver, str(tmp_path), str(ROUNDS), "3"], capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    told = json.loads(finished.stdout)
    assert told["faults"] == []
    done = told["done"]
    assert done["publish"] >= ROUNDS
    for what in ("move", "delete version", "delete", "gc"):
        assert done[what] > ROUNDS / 10, f"hardly ever: {what}"
    store = AdapterStore(tmp_path, base_name=BASE)
    verify(store, told["promises"])
    assert list((store.blob_root / "tmp").glob("*/*")) == []
    store.close()

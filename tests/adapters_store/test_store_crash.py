import json
import subprocess
import sys

from adapters_store.store import AdapterStore
from tests.adapters_store.crash_driver import BASE, verify

ROUNDS = 30


def test_what_was_acknowledged_survives_sigkill_and_nothing_is_half_visible(tmp_path):
    """Every round's child also verifies all promises so far, on what the kill before left."""
    driver = [sys.executable, "-m", "tests.adapters_store.crash_driver"]
    done = subprocess.run(
        [*driver, str(tmp_path), str(ROUNDS), "3"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["faults"] == []
    assert told["published"] >= ROUNDS
    assert told["deletes"] > 0
    store = AdapterStore(tmp_path, base_name=BASE)
    verify(store, told["promises"])
    assert list((store.blob_root / "tmp").glob("*/*")) == []
    store.close()

import json
import os
import subprocess
import sys

from tests.adapters_store.crash_driver import open_store, verify
from tests.adapters_store.homes import Home

ROUNDS = 200 if os.environ.get("ADAPTERD_TEST_ALL") else 40


def test_what_was_acknowledged_survives_sigkill_and_nothing_is_half_visible(home: Home):
    """Every round's child also verifies all promises so far, on what the kill before left."""
    rounds, urls = ROUNDS, ()
    if home.catalog is not None:  # over a network less is done in a second
        rounds, urls = ROUNDS // 10, (home.place.url, home.catalog)
    data_dir = home.folder / "data"
    driver = [sys.executable, "-m", "tests.adapters_store.crash_driver"]
    finished = subprocess.run(
        [*driver, str(data_dir), str(rounds), "3", *urls],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    told = json.loads(finished.stdout)
    assert told["faults"] == []
    done = told["done"]
    assert done["publish"] >= rounds
    for what in ("move", "delete version", "delete", "gc"):
        assert done[what] > rounds / 10, f"hardly ever: {what}"
    store = open_store(data_dir, *(urls or (None, None)))
    verify(store, told["promises"])
    assert list((store.blob_root / "tmp").glob("*/*")) == []
    store.close()

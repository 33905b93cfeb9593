import json
import subprocess
import sys

from tests.adapters_store.crash_driver import open_store, verify
from tests.adapters_store.homes import Home


def test_what_was_acknowledged_survives_sigkill_and_nothing_is_half_visible(home: Home):
    """Every round's child also verifies all promises so far, on what the kill before left."""
    rounds, alive_s, urls = 30, 0.3, ()
    if home.catalog is not None:  # over a network less is done in a second
        rounds, alive_s, urls = 10, 2.0, (home.place.url, home.catalog)
    data_dir = home.folder / "data"
    driver = [sys.executable, "-m", "tests.adapters_store.crash_driver"]
    done = subprocess.run(
        [*driver, str(data_dir), str(rounds), "3", str(alive_s), *urls],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["faults"] == []
    assert told["published"] >= rounds
    assert told["deletes"] > 0
    store = open_store(data_dir, *(urls or (None, None)))
    verify(store, told["promises"])
    assert list((store.blob_root / "tmp").glob("*/*")) == []
    store.close()

import io
import resource
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

from adapters_store.blobs import Blobs, FolderBlobs
from adapters_store.content import AdapterContent, AdapterFacts
from adapters_store.errors import (
    AdapterNotFound,
    AlreadyLoaded,
    Conflict,
    InvalidAdapter,
    InvalidRequest,
    NameReserved,
    StoreCorrupt,
    Unavailable,
)
from adapters_store.package import CONFIG_NAME, WEIGHTS_NAME
from adapters_store.store import AdapterStore, Published, UploadedFile
from tests.adapters_store.builders import (
    CONFIG,
    archive,
    facts_of,
    folder,
    gzipped,
    tarred,
    uploads,
    zipped,
)
from tests.adapters_store.homes import Home, objects_of

in_a_folder = pytest.mark.parametrize("home", ["local"], indirect=True)


@pytest.fixture
def store(home: Home):
    opened = home.open()
    yield opened
    opened.check()
    opened.close()


def publish(store: AdapterStore, name: str = "a", value: float = 1.0, **kwargs) -> Published:
    return store.publish(name, uploads(folder(value)), check=facts_of, **kwargs)


def stored(store: AdapterStore) -> set[str]:
    """Digests at rest; staging must be empty beside them."""
    assert list((store.blob_root / "tmp").glob("*/*")) == []
    return stored_versions(store)


def test_publish_makes_a_version_that_the_engine_can_read(store):
    published = publish(store)
    version = published.version
    assert published.created
    assert (version.name, version.number) == ("a", 1)
    assert version.facts == AdapterFacts("lora", 4, ("q_proj", "v_proj"), 192, {"tensors": 2})
    content = FolderBlobs(store.blob_root).read(version.digest)
    assert content.config == CONFIG | {"target_modules": ["q_proj", "v_proj"]}
    assert store.get("a").current == store.resolve("a") == version
    assert store.versions("a") == (version,)


def test_every_way_of_sending_the_same_adapter_is_one_version(store):
    digest = publish(store).version.digest
    files = folder()
    wrapped = {f"run-7/{name}": data for name, data in files.items()} | {"run-7/README.md": b"x"}
    for sent in (archive(zipped(files)), archive(gzipped(tarred(wrapped))), uploads(wrapped)):
        again = store.publish("a", sent, check=facts_of)
        assert not again.created
        assert (again.version.number, again.version.digest) == (1, digest)
    assert again.ignored_files == ("run-7/README.md",)
    assert stored(store) == {digest}


def test_other_content_is_the_next_version_and_older_content_moves_nothing(store):
    first, second = publish(store, value=1.0), publish(store, value=2.0)
    assert [second.version.number, store.resolve("a").number] == [2, 2]
    again = publish(store, value=1.0)
    assert not again.created
    assert again.version == first.version
    assert store.resolve("a") == second.version
    record = store.get("a")
    assert (record.versions, record.base, record.owner) == (2, "demo", "default")
    assert store.versions("a") == (first.version, second.version)


def test_resolve_takes_numbers_and_digest_prefixes(store):
    versions = [publish(store, value=float(n)).version for n in (1, 2)]
    for version in versions:
        for reference in (f"{version.number}", version.digest, version.digest[:8]):
            assert store.resolve(f"a@{reference}") == version
    for missing in (
        "b",
        "a@3",
        "a@9999999",
        "a@" + "0" * 64,
        "b@1",
        "",
        "@1",
        "A",
        "a\0",
        "\ud800",
    ):
        with pytest.raises(AdapterNotFound):
            store.resolve(missing)
    for wrong in (
        "a@",
        "a@0",
        "a@v1",
        "a@abc",
        "a@" + versions[0].digest[:8].upper() + "X",
        "a@1@1",
    ):
        with pytest.raises(InvalidRequest, match="names no version"):
            store.resolve(wrong)


def test_resolve_refuses_an_ambiguous_prefix(store):
    with store._catalog.write() as writer:  # sha256 will not make two alike on demand
        for tail in "01":
            facts = AdapterFacts("lora", 1, (), 0)
            writer.add_version("a", "12345678" + tail * 56, facts, owner="default")
    with pytest.raises(InvalidRequest, match="fits several versions"):
        store.resolve("a@12345678")
    assert store.resolve("a@123456780").number == 1
    with store._catalog.write() as writer:
        writer.delete_adapter("a")


@in_a_folder
@pytest.mark.parametrize(
    "name", ["", "A", "-a", ".a", "a" * 64, "a/b", "a\n", "a@1", "../a", "é", "a b", "a:b", "a\0"]
)
def test_bad_names_are_refused(store, name):
    with pytest.raises(InvalidRequest) as refused:
        publish(store, name)
    assert refused.value.param == "name"
    with pytest.raises(AdapterNotFound):
        store.get(name)
    with pytest.raises(AdapterNotFound):
        store.delete(name)


@in_a_folder
@pytest.mark.parametrize("name", ["a", "0", "a" * 63, "a.b_c-d", "1."])
def test_good_names_are_taken(store, name):
    assert publish(store, name).version == store.resolve(name)


def test_the_base_name_and_another_owners_name_are_taken(store):
    with pytest.raises(NameReserved):
        publish(store, "demo")
    publish(store, "a", owner="me")
    for value in (1.0, 2.0):
        with pytest.raises(Conflict) as refused:
            publish(store, "a", value)
        assert refused.value.param == "name"
    assert len(stored(store)) == 1


def refuse(content: AdapterContent) -> AdapterFacts:
    raise InvalidAdapter(f"tensor {next(iter(content.tensors))} has the wrong shape")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_is_stored_of_what_is_refused(store, value):
    with pytest.raises(InvalidAdapter, match=r"layers\.0\.q_proj\.lora_.*wrong shape"):
        store.publish("a", uploads(folder()), check=refuse)
    with pytest.raises(InvalidAdapter, match=r"'layers\.0\.q_proj\.lora_.*NaN or infinity"):
        publish(store, value=value)
    broken = folder() | {WEIGHTS_NAME: b"x" * 100}
    with pytest.raises(InvalidAdapter, match="safetensors header"):
        store.publish("a", uploads(broken), check=facts_of)
    assert stored(store) == set()
    with pytest.raises(AdapterNotFound):
        store.get("a")


def test_a_full_disk_is_told_and_leaves_nothing(store):
    """The limit on file size stands in for it: the system answers a write alike."""
    files = folder() | {WEIGHTS_NAME: save({"a": torch.ones(200_000)})}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, before[1]))
    try:
        with pytest.raises(Unavailable, match="File too large"):
            store.publish("a", uploads(files), check=facts_of)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert stored(store) == set()
    assert store.publish("a", uploads(files), check=facts_of).created


def test_lists_by_name_page_by_page(store):
    for name in ("c", "a", "b"):
        publish(store, name)
    pages = [store.list(limit=2), store.list(limit=2, after="b"), store.list(limit=3)]
    assert [([r.name for r in found], more) for found, more in pages] == [
        (["a", "b"], True),
        (["c"], False),
        (["a", "b", "c"], False),
    ]
    for unfit in ("No Name", "\ud800"):
        with pytest.raises(InvalidRequest) as refused:
            store.list(limit=2, after=unfit)
        assert refused.value.param == "after"


def test_a_page_follows_one_whose_last_adapter_was_deleted_meanwhile(store):
    for name in ("a", "b", "c"):
        publish(store, name)
    store.delete("b")
    found, more = store.list(limit=2, after="b")
    assert ([record.name for record in found], more) == (["c"], False)


def test_a_publish_of_new_names_only(store):
    assert publish(store, "a", new=True).created
    for value in (1.0, 2.0):
        with pytest.raises(AlreadyLoaded, match="'a' is there already"):
            publish(store, "a", value=value, new=True)
    assert store.get("a").versions == 1
    store.delete("a")
    assert publish(store, "a", value=2.0, new=True).created


def test_of_two_that_publish_a_new_name_at_once_one_is_refused(store):
    """The second has passed the first look when the first commits."""

    def other_first(content: AdapterContent) -> AdapterFacts:
        publish(store, "a", value=2.0)
        return facts_of(content)

    with pytest.raises(AlreadyLoaded):
        store.publish("a", uploads(folder(1.0)), check=other_first, new=True)
    assert store.get("a").versions == 1
    assert stored(store) == {store.get("a").current.digest}


def test_a_number_is_one_adapters_for_ever(store):
    publish(store, "a")
    publish(store, "b")
    first, last = store.get("a").id, store.get("b").id
    assert (store.of_number(first).name, store.of_number(last).name) == ("a", "b")
    publish(store, "a", value=2.0)
    assert store.of_number(first).current.number == 2
    store.delete("b")
    publish(store, "c")
    assert store.get("c").id not in (first, last)
    for number in (last, 0, 2**31 - 1):
        with pytest.raises(AdapterNotFound):
            store.of_number(number)


def test_delete_keeps_what_another_name_shares(store):
    shared = publish(store, "a", 1.0).version.digest
    own = publish(store, "a", 2.0).version.digest
    assert publish(store, "b", 1.0).created
    record = store.get("a")
    assert stored(store) == {shared, own}
    assert store.delete("a") == record
    assert stored(store) == {shared}
    with pytest.raises(AdapterNotFound):
        store.delete("a")
    store.delete("b")
    assert stored(store) == set()
    assert publish(store, "a", 2.0).version.number == 1


def test_everything_is_there_again_after_reopening(home):
    store = home.open()
    versions = [publish(store, "a", float(n)).version for n in (1, 2)]
    store.close()
    again = home.open()
    assert again.versions("a") == tuple(versions)
    assert again.blob_root == store.blob_root
    again.check()
    again.close()


def zip_of(store: AdapterStore, digest: str) -> bytes:
    out = io.BytesIO()
    store.write_zip(digest, out)
    return out.getvalue()


def test_a_download_is_the_same_each_time_and_uploads_to_the_same_version(store, tmp_path):
    digest = publish(store).version.digest
    data = zip_of(store, digest)
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        assert opened.testzip() is None
        assert opened.namelist() == [CONFIG_NAME, WEIGHTS_NAME]
    other = AdapterStore(tmp_path / "other", base_name="demo")
    assert other.publish("b", archive(data), check=facts_of).version.digest == digest
    assert zip_of(other, digest) == data
    with (tmp_path / "on disk").open("wb") as seekable:
        store.write_zip(digest, seekable)
    assert (tmp_path / "on disk").read_bytes() == data
    other.close()


@in_a_folder
def test_a_damaged_version_is_not_downloaded_and_uploading_mends_it(store):
    digest = publish(store).version.digest
    weights = store.blob_root / "sha256" / digest[:2] / digest / WEIGHTS_NAME
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    out = io.BytesIO()
    with pytest.raises(StoreCorrupt):
        store.write_zip(digest, out)
    assert out.getvalue() == b""
    with pytest.raises(StoreCorrupt):
        store.check()
    assert not publish(store).created
    assert zip_of(store, digest)
    with pytest.raises(AdapterNotFound):
        zip_of(store, "0" * 64)


def together(*works) -> list[Any]:
    """Runs them at the same moment, each in a thread; what they returned, or the fault raised."""
    gate = threading.Barrier(len(works))
    results: list[Any] = [None] * len(works)

    def run(index: int) -> None:
        gate.wait()
        try:
            results[index] = works[index]()
        except BaseException as fault:
            results[index] = fault

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_the_same_content_published_at_once_is_created_once(store, home):
    other = home.open_elsewhere()
    for round_ in range(8):
        name = f"n{round_}"
        results = together(
            *(
                lambda target=target, name=name: publish(target, name, 1.0)
                for target in (store, other, store)
            )
        )
        assert all(isinstance(result, Published) for result in results), results
        assert sorted(result.created for result in results) == [False, False, True]
        assert results[0].version == results[1].version == results[2].version
    other.close()


def slow_down(blobs: Blobs) -> None:
    """Makes it wait where others could slip in between files and rows."""
    put, delete = blobs.put, blobs.delete

    def slow_put(digest: str, package: Path) -> None:
        put(digest, package)
        time.sleep(0.02)

    def slow_delete(digest: str) -> None:
        time.sleep(0.02)
        delete(digest)

    blobs.put, blobs.delete = slow_put, slow_delete


@pytest.mark.parametrize("delete_first_s", [0.0, 0.01, 0.02, 0.03, 0.04])
def test_a_delete_beside_a_publish_of_the_same_content_leaves_no_row_without_files(
    store, home, delete_first_s
):
    other = home.open_elsewhere()
    for target in (store, other):
        slow_down(target._blobs)

    def publish_late(target: AdapterStore) -> Published:
        time.sleep(delete_first_s)
        return publish(target, "new")

    for target in (store, other) * 2:
        publish(store, "old")
        gone, kept = together(
            lambda: store.delete("old"), lambda target=target: publish_late(target)
        )
        assert not isinstance(gone, BaseException)
        assert isinstance(kept, Published)
        store.check()
        assert stored_versions(store) == {kept.version.digest}
        other.delete("new")
        assert stored_versions(store) == set()
    other.close()


def stored_versions(store: AdapterStore) -> set[str]:
    return objects_of(store._place).digests()


def test_a_version_is_published_and_deleted_under_one_name_from_all_sides(store):
    def churn() -> int:
        seen = 0
        for _ in range(10):
            publish(store, "a")
            try:
                store.delete("a")
                seen += 1
            except AdapterNotFound:
                pass
        return seen

    results = together(churn, churn, churn)
    assert all(isinstance(result, int) for result in results), results
    store.check()


def anonymous_bytes() -> int:
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in line
    )
    return int(line.split()[1]) * 1024


@in_a_folder
def test_memory_does_not_grow_with_the_adapter(store, tmp_path):
    """96 MB pass through 1 MB pieces; the tensors that a check sees are mapped, not read."""
    torch.manual_seed(0)
    tensor = torch.randn(6, 4_000_000)
    save_file({f"t{n}": tensor[n].clone() for n in range(6)}, tmp_path / "big")
    del tensor
    (tmp_path / CONFIG_NAME).write_bytes(folder()[CONFIG_NAME])

    def check(content: AdapterContent) -> AdapterFacts:
        assert sum(float(tensor[-1]) for tensor in content.tensors.values()) != 0
        assert anonymous_bytes() - before < 48 << 20
        return facts_of(content)

    tracemalloc.start()
    before = anonymous_bytes()
    with (tmp_path / "big").open("rb") as big, (tmp_path / CONFIG_NAME).open("rb") as config:
        files = [UploadedFile(WEIGHTS_NAME, big), UploadedFile(CONFIG_NAME, config)]
        version = store.publish("big", files, check=check).version
    with (tmp_path / "zip").open("wb") as out:
        store.write_zip(version.digest, out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert version.facts.bytes == 96_000_000
    assert peak < 16 << 20
    assert anonymous_bytes() - before < 48 << 20

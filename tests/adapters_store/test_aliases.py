import threading
from collections import Counter

import pytest

from adapters_store.aliases import Alias, Canary, Target
from adapters_store.content import AdapterFacts
from adapters_store.errors import (
    AdapterNotFound,
    AliasMoved,
    AliasNotFound,
    Conflict,
    InvalidRequest,
    VersionInUse,
)
from adapters_store.package import CONFIG_NAME, WEIGHTS_NAME
from adapters_store.records import VersionRecord
from adapters_store.store import AdapterStore
from tests.adapters_store.builders import facts_of, folder, uploads
from tests.adapters_store.homes import Home

in_a_folder = pytest.mark.parametrize("home", ["local"], indirect=True)


@pytest.fixture
def store(home: Home):
    opened = home.open()
    yield opened
    opened.check()
    opened.close()


def publish(store: AdapterStore, *numbers: int, name: str = "a", promote: bool = True) -> None:
    for number in numbers:
        files = uploads(folder(float(number)))
        assert store.publish(name, files, check=facts_of, promote=promote).version.number == number


def means(store: AdapterStore, reference: str) -> int:
    return store.resolve(reference).number


def causes(store: AdapterStore, tag: str = "current") -> list[tuple[str, int | None]]:
    """The history of an alias of "a", oldest first: why, and what it meant then."""
    moves = store.aliases.history("a", tag, limit=100)
    return [(one.cause, one.target and one.target.number) for one in reversed(moves)]


def test_a_tag_means_what_it_was_moved_to_whatever_is_uploaded(store):
    publish(store, 1)
    store.aliases.move("a", "prod", Target(1))
    publish(store, 2)
    assert (means(store, "a"), means(store, "a:prod"), means(store, "a:current")) == (2, 1, 2)
    assert [one.tag for one in store.aliases.list("a")] == ["current", "prod"]


def test_an_upload_that_is_not_promoted_moves_nothing_but_a_new_name(store):
    publish(store, 1, 2, promote=False)
    assert means(store, "a") == 1
    assert causes(store) == [("upload", 1)]


def test_of_those_who_expect_the_same_version_one_moves_the_alias(home: Home, store):
    """From two replicas, two at once on each."""
    publish(store, 1, 2, 3, 4, 5)
    store.aliases.move("a", "prod", Target(1), expected=0)
    won: Counter[str] = Counter()
    start = threading.Barrier(4)
    other = home.open_elsewhere()

    def race(number: int) -> None:
        start.wait()
        try:
            replica = store if number % 2 else other
            replica.aliases.move("a", "prod", Target(number), expected=1)
            won["moved"] += 1
        except AliasMoved:
            won["too late"] += 1

    threads = [threading.Thread(target=race, args=[number]) for number in (2, 3, 4, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == {"moved": 1, "too late": 3}
    assert len(causes(store, "prod")) == 2
    assert means(other, "a:prod") == means(store, "a:prod")
    other.close()


def test_what_was_expected_is_compared_before_every_change(store):
    publish(store, 1, 2)
    store.aliases.move("a", "prod", Target(2))
    for change in (
        lambda: store.aliases.move("a", "prod", Target(1), expected=1),
        lambda: store.aliases.move("a", "new", Target(1), expected=1),
        lambda: store.aliases.move("a", "prod", Target(1), expected=0),
        lambda: store.aliases.roll_back("a", "current", expected=1),
        lambda: store.aliases.remove("a", "prod", expected=1),
    ):
        with pytest.raises(AliasMoved, match="look at it again"):
            change()
    assert (means(store, "a"), means(store, "a:prod")) == (2, 2)
    store.aliases.remove("a", "prod", expected=2)


def test_rolling_back_again_goes_further_back_and_never_to_what_was_left(store):
    publish(store, 1, 2, 3)
    store.aliases.roll_back("a", "current")
    assert means(store, "a") == 2
    publish(store, 4)
    store.aliases.roll_back("a", "current")
    assert means(store, "a") == 2
    store.aliases.roll_back("a", "current", expected=2)
    assert means(store, "a") == 1
    with pytest.raises(Conflict, match="no earlier state"):
        store.aliases.roll_back("a", "current")
    assert causes(store) == [
        ("upload", 1), ("upload", 2), ("upload", 3), ("rollback", 2),
        ("upload", 4), ("rollback", 2), ("rollback", 1),
    ]  # fmt: skip


def test_a_rollback_passes_over_versions_that_are_gone(store):
    publish(store, 1, 2, 3)
    store.delete_version("a", 2)
    store.aliases.roll_back("a", "current")
    assert means(store, "a") == 1


def test_a_removed_alias_keeps_its_history_and_can_be_rolled_back_to(store):
    publish(store, 1)
    store.aliases.move("a", "prod", Target(1))
    store.aliases.remove("a", "prod")
    with pytest.raises(AliasNotFound):
        store.resolve("a:prod")
    assert causes(store, "prod") == [("move", 1), ("delete", None)]
    assert store.aliases.roll_back("a", "prod", expected=0).version.number == 1


def test_moving_an_alias_to_where_it_is_notes_nothing(store):
    publish(store, 1)
    store.aliases.move("a", "current", Target(1), expected=1)
    assert causes(store) == [("upload", 1)]


def test_a_canary_is_part_of_what_an_alias_means_and_is_rolled_back(store):
    publish(store, 1, 2)
    moved = store.aliases.move("a", "current", Target(1, 2, 0.25))
    assert moved.canary is not None
    assert (moved.version.number, moved.canary.version.number, moved.canary.weight) == (1, 2, 0.25)
    assert store.aliases.get("a") == moved
    assert store.show("a").number == 1
    assert {means(store, "a") for _ in range(200)} == {1, 2}
    assert store.aliases.move("a", "current", Target(1)).canary is None
    assert store.aliases.roll_back("a", "current") == moved


def version(number: int) -> VersionRecord:
    facts = AdapterFacts("lora", 8, ("q_proj",), 1)
    return VersionRecord("a", number, f"{number:064x}", facts, 0)


def test_who_gets_the_canary_is_settled_by_the_key_and_keeps_it_as_the_weight_grows():
    keys = [f"user-{number}" for number in range(4000)]
    before: set[str] = set()
    for weight in (0.1, 0.3, 0.9):
        alias = Alias("a", "prod", version(1), Canary(version(2), weight))
        got = {key for key in keys if alias.chosen(key).number == 2}
        assert got == {key for key in keys if alias.chosen(key).number == 2}
        assert before <= got
        assert abs(len(got) / len(keys) - weight) < 0.03
        before = got
    other = Alias("a", "beta", version(1), Canary(version(2), 0.5))
    assert {key for key in keys if other.chosen(key).number == 2} != before


@pytest.mark.parametrize(
    "target",
    [Target(1, 2), Target(1, 1, 0.5), Target(1, 2, 0.0), Target(1, 2, 1.0), Target(1, None, 0.5)],
)
def test_a_canary_that_makes_no_sense(store, target):
    publish(store, 1, 2)
    with pytest.raises(InvalidRequest, match="canary"):
        store.aliases.move("a", "prod", target)
    with pytest.raises(AliasNotFound):
        store.aliases.get("a", "prod")


@pytest.mark.parametrize("tag", ["", "Prod", "a b", "-x", "x" * 64, "a:b"])
def test_what_is_no_tag(store, tag):
    publish(store, 1)
    with pytest.raises(InvalidRequest, match="no tag"):
        store.aliases.move("a", tag, Target(1))
    with pytest.raises(AdapterNotFound):
        store.resolve(f"a:{tag}")


def test_what_is_not_there(store):
    publish(store, 1)
    for ask in (
        lambda: store.aliases.get("b"),
        lambda: store.aliases.list("b"),
        lambda: store.aliases.list("\ud800"),
        lambda: store.aliases.history("b", "current", limit=1),
        lambda: store.aliases.move("b", "prod", Target(1)),
        lambda: store.aliases.move("a", "prod", Target(2)),
        lambda: store.aliases.move("a", "prod", Target(1, 7, 0.5)),
        lambda: store.aliases.roll_back("b", "current"),
        lambda: store.delete_version("a", 2),
        lambda: store.delete_version("b", 1),
    ):
        with pytest.raises(AdapterNotFound):
            ask()
    for ask in (
        lambda: store.aliases.get("a", "prod"),
        lambda: store.aliases.history("a", "prod", limit=1),
        lambda: store.aliases.roll_back("a", "prod"),
        lambda: store.aliases.remove("a", "prod"),
    ):
        with pytest.raises(AliasNotFound):
            ask()
    with pytest.raises(InvalidRequest, match="bare name"):
        store.aliases.remove("a", "current")


def test_a_version_that_an_alias_means_is_deleted_only_by_force(store):
    publish(store, 1, 2, 3)
    store.aliases.move("a", "prod", Target(2))
    store.aliases.move("a", "beta", Target(1, 2, 0.5))
    with pytest.raises(VersionInUse, match="a:beta, a:prod"):
        store.delete_version("a", 2)
    assert means(store, "a@2") == 2
    store.delete_version("a", 2, force=True)
    assert store.aliases.get("a", "beta").canary is None
    assert means(store, "a:beta") == 1
    with pytest.raises(AliasNotFound):
        store.aliases.get("a", "prod")
    store.delete_version("a", 3, force=True)
    assert means(store, "a") == 1
    with pytest.raises(VersionInUse, match="no other version"):
        store.delete_version("a", 1, force=True)


def test_a_deleted_versions_number_is_not_given_out_again(store):
    publish(store, 1, 2)
    store.delete_version("a", 2, force=True)
    publish(store, 3)
    assert [one.number for one in store.versions("a")] == [1, 3]


def test_a_name_with_tags_is_deleted_only_by_force(store):
    publish(store, 1)
    store.aliases.move("a", "prod", Target(1))
    with pytest.raises(VersionInUse, match="a:prod"):
        store.delete("a")
    store.delete("a", force=True)
    with pytest.raises(AdapterNotFound):
        store.resolve("a:prod")


def test_garbage_is_what_no_version_refers_to(store):
    publish(store, 1, 2)
    kept = {one.digest for one in store.versions("a")}
    with store._blobs.staging() as staging:
        left = staging / "left"
        left.mkdir()
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            (left / name).write_bytes(b"whatever")
        store._blobs.put("f" * 64, left)
    assert store.collect_garbage() == ("f" * 64,)
    assert set(store._blobs.digests()) == kept
    assert store.collect_garbage() == ()


@in_a_folder
def test_verify_names_what_is_damaged_and_goes_on(store):
    publish(store, 1, 2)
    damaged = store.versions("a")[0].digest
    file = store.blob_root / "sha256" / damaged[:2] / damaged / "adapter_config.json"
    whole = file.read_bytes()
    file.write_bytes(whole + b" ")
    found = dict(store.verify())
    assert {digest: fault is not None for digest, fault in found.items()} == {
        one.digest: one.digest == damaged for one in store.versions("a")
    }
    file.write_bytes(whole)

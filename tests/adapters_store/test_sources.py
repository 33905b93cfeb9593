"""What may be read by name, and that a refusal says nothing of what lies outside."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from adapters_store.errors import AdapterNotFound, InvalidRequest, Unavailable
from adapters_store.sources import WANTED, Sources, adapter_files
from tests.adapters_store.hub_cache import COMMIT, make_hub_cache

FILES = {name: name.encode() for name in WANTED}


def folder_of(path: Path, files: Mapping[str, bytes] = FILES) -> Path:
    path.mkdir(parents=True)
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder_of(tmp_path / "root" / "sql", FILES | {"optimizer.pt": b"not read"})
    folder_of(tmp_path / "elsewhere" / "secret")
    folder_of(tmp_path / "root-of-another" / "sql")
    (tmp_path / "root" / "out").symlink_to(tmp_path / "elsewhere" / "secret")
    (tmp_path / "root" / "out-to-nothing").symlink_to(tmp_path / "elsewhere" / "nothing")
    (tmp_path / "root" / "round").symlink_to(tmp_path / "root" / "round")
    return tmp_path / "root"


def read(sources: Sources, source: str, revision: str | None = None) -> dict[str, bytes]:
    with sources.opened(source, revision) as opened:
        return {file.name: file.stream.read() for file in opened.files}


def test_a_folder_inside_a_root_gives_its_two_files_and_where_it_was(root: Path):
    sources = Sources([root.parent / "missing", root])
    with sources.opened(f"{root}/sql") as opened:
        assert opened.origin == {"path": f"{root}/sql"}
        streams = [file.stream for file in opened.files]
        assert {file.name: file.stream.read() for file in opened.files} == FILES
    assert all(stream.closed for stream in streams)


def test_ways_that_stay_inside(root: Path):
    (root / "link").symlink_to("sql")
    (root.parent / "name-of-root").symlink_to(root)
    assert read(Sources([root]), f"{root}/link") == FILES
    assert read(Sources([root]), f"{root}/sql/../sql/.") == FILES
    assert read(Sources([root / "sql"]), f"{root}/sql") == FILES
    assert read(Sources([root.parent / "name-of-root"]), f"{root}/sql") == FILES
    assert read(Sources([root]), f"{root.parent}/name-of-root/sql") == FILES


def test_all_that_is_outside_is_refused_alike_whether_it_is_there_or_not(root: Path):
    outside = [
        f"{root.parent}/elsewhere/secret",
        f"{root.parent}/elsewhere/nothing",
        f"{root.parent}",
        "/",
        "/etc/passwd",
        f"{root}-of-another/sql",
        f"{root}/../elsewhere/secret",
        f"{root}/../elsewhere/nothing",
        f"{root}/out",
        f"{root}/out/.",
        f"{root}/out-to-nothing",
        f"{root}/sql\0",
    ]
    said = set()
    for path in outside:
        with pytest.raises(InvalidRequest) as caught:
            read(Sources([root]), path)
        assert caught.value.param == "source"
        said.add(caught.value.message)
    assert len(said) == 1
    assert "--adapter-root" in said.pop()


@pytest.mark.parametrize("name", WANTED)
def test_a_file_that_leads_out_is_outside(root: Path, name: str):
    (root / "sql" / name).unlink()
    (root / "sql" / name).symlink_to(root.parent / "elsewhere" / "secret" / name)
    with pytest.raises(InvalidRequest, match="not inside a folder"):
        read(Sources([root]), f"{root}/sql")


@pytest.mark.parametrize("path", ["nobody", "sql/adapter_config.json", "round", "x" * 3000])
def test_no_folder_inside_a_root(root: Path, path: str):
    with pytest.raises(AdapterNotFound, match="no folder"):
        read(Sources([root]), f"{root}/{path}")


@pytest.mark.parametrize("name", WANTED)
@pytest.mark.parametrize("instead", ["nothing", "a folder", "a pipe"])
def test_a_folder_without_both_files(root: Path, name: str, instead: str):
    file = root / "sql" / name
    file.unlink()
    if instead == "a folder":
        file.mkdir()
    elif instead == "a pipe":
        os.mkfifo(file)
    with pytest.raises(AdapterNotFound, match=name):
        read(Sources([root]), f"{root}/sql")


def test_nothing_is_read_unless_it_was_configured(root: Path):
    for source, remedy in [(f"{root}/sql", "--adapter-root"), ("org/name", "--adapter-hub")]:
        with pytest.raises(InvalidRequest, match=remedy):
            read(Sources(), source)
    with pytest.raises(InvalidRequest, match="--adapter-hub"):
        read(Sources([root]), "sql")  # not relative to a root, nor to where the server runs


def test_a_folder_has_no_revision(root: Path):
    with pytest.raises(InvalidRequest) as caught:
        read(Sources([root], hub=True), f"{root}/sql", "main")
    assert caught.value.param == "revision"


def test_a_folder_of_our_own_needs_no_root(root: Path):
    with adapter_files(root / "out") as files:
        assert {file.name: file.stream.read() for file in files} == FILES


# --- the hub's cache: a real hub was never reached ---------------------------------------------


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_hubs_repository_says_which_commit_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
):
    make_hub_cache(tmp_path, "org/sql", FILES, monkeypatch)
    sources = Sources(hub=True)
    assert read(sources, "org/sql", revision) == FILES
    with sources.opened("org/sql", revision) as opened:
        assert opened.origin == {"hub": "org/sql", "revision": COMMIT}


@pytest.mark.parametrize(("source", "revision"), [("org/other", None), ("org/sql", "v2")])
def test_a_hub_that_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, revision: str | None
):
    make_hub_cache(tmp_path, "org/sql", FILES, monkeypatch)
    with pytest.raises(Unavailable, match=source):
        read(Sources(hub=True), source, revision)


def test_a_snapshot_that_links_out_of_its_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    snapshot = make_hub_cache(tmp_path / "cache", "org/sql", FILES, monkeypatch)
    (tmp_path / "secret").write_bytes(b"secret")
    (snapshot / WANTED[0]).unlink()
    (snapshot / WANTED[0]).symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidRequest, match="not inside"):
        read(Sources(hub=True), "org/sql")


@pytest.mark.parametrize(
    ("source", "revision", "param"),
    [
        ("sql", None, "source"),
        ("org/sql/more", None, "source"),
        ("./sql", None, "source"),
        ("../sql", None, "source"),
        ("org/..", None, "source"),
        ("org/sql--x", None, "source"),
        ("https://host/org/sql", None, "source"),
        ("~/sql", None, "source"),
        ("org/sql\n", None, "source"),
        ("org/sql", "../refs/main", "revision"),
        ("org/sql", "a/../main", "revision"),
        ("org/sql", "/etc/passwd", "revision"),
        ("org/sql", "", "revision"),
        ("org/sql", "main\n", "revision"),
        ("org/sql", "a" * 201, "revision"),
    ],
)
def test_names_that_a_hub_does_not_have(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    revision: str | None,
    param: str,
):
    make_hub_cache(tmp_path, "org/sql", FILES, monkeypatch)
    with pytest.raises(InvalidRequest) as caught:
        read(Sources(hub=True), source, revision)
    assert caught.value.param == param

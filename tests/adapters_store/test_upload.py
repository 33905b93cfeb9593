import gzip
import io
import random
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters_store.errors import AdapterdError, InvalidAdapter, TooLarge
from adapters_store.members import MAX_CONFIG_BYTES, UploadedFile, UploadLimits
from adapters_store.package import CONFIG_NAME, WEIGHTS_NAME
from adapters_store.upload import Received, receive
from tests.adapters_store.builders import archive, folder, gzipped, tarred, uploads, zipped

FOLDER = folder()
LIMITS = UploadLimits()


def under(prefix: str, files: dict[str, bytes] = FOLDER) -> dict[str, bytes]:
    return {prefix + name: data for name, data in files.items()}


def take(tmp_path: Path, files: list[UploadedFile], limits: UploadLimits = LIMITS) -> Received:
    return receive(files, tmp_path / "taken", limits)


def refused(tmp_path: Path, files: list[UploadedFile], limits: UploadLimits = LIMITS) -> str:
    """The message of the refusal, after which nothing lies in or beside the staging folder."""
    staging = tmp_path / "a" / "b" / "staging"
    staging.mkdir(parents=True)
    with pytest.raises(InvalidAdapter) as caught:
        receive(files, staging / "taken", limits)
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert found <= {"a", "a/b", "a/b/staging", "a/b/staging/taken"}
    assert len(caught.value.message) < 1000
    return caught.value.message


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("adapter.tar", tarred(FOLDER)),
        ("adapter.7z", b"7z\xbc\xaf\x27\x1c"),
        ("Adapter.ZIP", b"<html>not found</html>"),
        ("adapter.tar.gz", b""),
    ],
)
def test_an_archive_of_another_kind_is_said_to_be_one(tmp_path: Path, name: str, data: bytes):
    message = refused(tmp_path, archive(data, name))
    assert repr(name) in message
    assert "no .zip or .tar.gz" in message


@pytest.mark.parametrize(
    "files",
    [
        uploads(FOLDER),
        uploads(dict(reversed(FOLDER.items()))),
        uploads(under("my-adapter/")),
        uploads(under("./")),
        archive(zipped(FOLDER)),
        archive(zipped(FOLDER), "no extension"),
        archive(zipped(under("my-adapter/"))),
        archive(zipped([("my-adapter/", b""), *under("my-adapter/").items()])),
        archive(gzipped(tarred(FOLDER)), "adapter.tar.gz"),
        archive(gzipped(tarred(FOLDER)), "adapter.tgz"),
        archive(gzipped(tarred(under("./")))),
        archive(gzipped(tarred(under("my-adapter/"), tarfile.GNU_FORMAT))),
        archive(gzipped(tarred(under("my-adapter/"), tarfile.USTAR_FORMAT))),
        archive(gzipped(tarred(under("n" * 180 + "/"), tarfile.PAX_FORMAT))),
        archive(gzipped(tarred(under("n" * 180 + "/"), tarfile.GNU_FORMAT))),
        archive(gzipped(tarred(under("n" * 120 + "/"), tarfile.USTAR_FORMAT))),
        archive(gzipped(tarred(under("ä/")))),
        archive(gzipped(tarred(FOLDER)[:5000]) + gzipped(tarred(FOLDER)[5000:])),
        archive(gzipped(tarred(FOLDER)) + bytes(1000)),
    ],
)
def test_every_way_of_sending_yields_the_same_two_files(tmp_path, files):
    received = take(tmp_path, files)
    assert received.config == FOLDER[CONFIG_NAME]
    assert received.weights.read_bytes() == FOLDER[WEIGHTS_NAME]
    assert received.ignored == ()
    assert list(tmp_path.iterdir()) == [received.weights]


def test_takes_what_tar_itself_writes(tmp_path):
    source = tmp_path / "my-adapter"
    source.mkdir()
    for name, data in FOLDER.items():
        (source / name).write_bytes(data)
    packed = tmp_path / "x.tar.gz"
    with tarfile.open(packed, "w:gz") as target:
        target.add(source, "my-adapter")
    with packed.open("rb") as stream:
        received = receive([UploadedFile("x.tar.gz", stream)], tmp_path / "taken", LIMITS)
    assert received.weights.read_bytes() == FOLDER[WEIGHTS_NAME]


EXTRAS = [
    "README.md",
    "tokenizer.json",
    "tokenizer_config.json",
    "merges.txt",
    "chat_template.jinja",
    "trainer_state.json",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "rng_state_0.pth",
    "runs/events.out.tfevents.1",
    "run.py",
]
NOISE = [".DS_Store", "__MACOSX/._adapter_config.json", "._adapter_model.safetensors"]


@pytest.mark.parametrize("wrap", [uploads, lambda f: archive(zipped(f))])
def test_extras_are_listed_and_not_kept(tmp_path, wrap):
    extras = dict.fromkeys([*EXTRAS, *NOISE], b"x")
    received = take(tmp_path, wrap(extras | FOLDER))
    assert received.ignored == tuple(EXTRAS)
    assert list(tmp_path.iterdir()) == [received.weights]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "no file"),
        ({CONFIG_NAME: b"{}"}, f"no {WEIGHTS_NAME}"),
        ({WEIGHTS_NAME: b"x"}, f"no {CONFIG_NAME}"),
        ({CONFIG_NAME: b"{}", "adapter_model.bin": b"x"}, "safe_serialization=True"),
        ({CONFIG_NAME: b"{}", "weights.PT": b"x"}, "safe_serialization=True"),
        ({CONFIG_NAME: b"{}", "pytorch_model.pth": b"x"}, "safe_serialization=True"),
        ({CONFIG_NAME: b"{}", "a.pkl": b"x"}, "safe_serialization=True"),
        ({CONFIG_NAME: b"{}", "training_args.bin": b"x"}, f"no {WEIGHTS_NAME}"),
        ({CONFIG_NAME: b"{}", "adapter.gguf": b"x"}, f"no {WEIGHTS_NAME}"),
        (FOLDER | {"adapter_model.bin": b"x"}, "another file of weights"),
        (FOLDER | {"new_embeddings.safetensors": b"x"}, "new_embeddings.safetensors"),
        (FOLDER | under("b/"), "more than one"),
        (under("a/") | under("b/"), "more than one"),
        ({CONFIG_NAME: b"{}", f"a/{WEIGHTS_NAME}": b"x"}, "different folders"),
        (under("a/b/"), "more than one folder deep"),
        ({"x.zip": zipped(FOLDER), "README.md": b"x"}, "send it alone"),
        ({"x.tgz": gzipped(tarred(FOLDER)), CONFIG_NAME: b"x"}, "send it alone"),
    ],
)
def test_refuses_what_is_not_one_adapter(tmp_path, files, says):
    assert says in refused(tmp_path, uploads(files))


BAD_NAMES = [
    "../adapter_config.json",
    "a/../../adapter_config.json",
    "../../etc/cron.d/x",
    "..",
    "/etc/passwd",
    "/adapter_config.json",
    "C:/adapter_config.json",
    "c:adapter_config.json",
    "..\\adapter_config.json",
    "a\\adapter_config.json",
    "x\nadapter_config.json",
    "x" * 1025,
]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("kind", ["folder", "zip", "zip folder", "tar", "tar folder"])
def test_a_name_that_points_elsewhere_is_refused_not_skipped(tmp_path, name, kind):
    files = dict(FOLDER)
    if kind == "folder":
        sent = uploads(files | {name: b"{}"})
    elif kind.startswith("zip"):
        entry = zipfile.ZipInfo("placeholder")
        entry.filename = name + ("/" if kind == "zip folder" else "")
        sent = archive(zipped([(entry, b""), *files.items()]))
    else:
        entry = tarfile.TarInfo(name)
        entry.type = tarfile.DIRTYPE if kind == "tar folder" else tarfile.REGTYPE
        sent = archive(gzipped(tarred([(entry, b""), *files.items()])))
    assert "name" in refused(tmp_path, sent)


def test_a_nul_does_not_hide_a_name(tmp_path):
    data = zipped({"adapter_config.jsonX../../x": b"{}"} | FOLDER).replace(b"jsonX..", b"json\0..")
    assert "name" in refused(tmp_path, archive(data))


def zip_entry(name: str, mode: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3
    entry.external_attr = mode << 16
    return entry


@pytest.mark.parametrize(
    "mode", [stat.S_IFLNK | 0o777, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK]
)
@pytest.mark.parametrize("name", [WEIGHTS_NAME, "README.md"])
def test_zip_links_and_devices_are_refused(tmp_path, mode, name):
    files = [(zip_entry(name, mode), b"/etc/passwd"), *FOLDER.items()]
    assert "link or device" in refused(tmp_path, archive(zipped(files)))


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.CONTTYPE,
        tarfile.GNUTYPE_SPARSE,
        b"Z",
    ],
)
@pytest.mark.parametrize("name", [WEIGHTS_NAME, "README.md"])
def test_tar_links_and_devices_are_refused(tmp_path, kind, name):
    entry = tarfile.TarInfo(name)
    entry.type = kind
    entry.linkname = "/etc/passwd"
    files = [(entry, b""), *FOLDER.items()]
    assert "plain file" in refused(tmp_path, archive(gzipped(tarred(files))))


def test_tar_sparse_files_are_refused(tmp_path):
    entry = tarfile.TarInfo(WEIGHTS_NAME)
    entry.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    assert "sparse" in refused(tmp_path, archive(gzipped(tarred([(entry, b"")]))))


def test_members_given_twice_are_refused(tmp_path):
    for number, name in enumerate([CONFIG_NAME, WEIGHTS_NAME, "README.md"]):
        twice = [*FOLDER.items(), ("README.md", b""), (name, b"{}")]
        for kind, data in [("zip", zipped(twice)), ("tar", gzipped(tarred(twice)))]:
            assert "twice" in refused(tmp_path / f"{kind}{number}", archive(data))


def with_flag(data: bytes, flag: int) -> bytes:
    """The zip with a flag set in every local and central header."""
    changed = bytearray(data)
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        found = data.find(magic)
        while found >= 0:
            (flags,) = struct.unpack_from("<H", data, found + at)
            struct.pack_into("<H", changed, found + at, flags | flag)
            found = data.find(magic, found + 4)
    return bytes(changed)


@pytest.mark.parametrize("flag", [0x1, 0x40, 0x2000])
def test_encrypted_zips_are_refused(tmp_path, flag):
    message = refused(tmp_path, archive(with_flag(zipped({CONFIG_NAME: b"{}"}), flag)))
    assert "encrypted" in message


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_odd_zip_methods_are_refused(tmp_path, method):
    entry = zipfile.ZipInfo(WEIGHTS_NAME)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as target:
        entry.compress_type = method
        target.writestr(entry, b"x")
    assert "compression method" in refused(tmp_path, archive(out.getvalue()))


@pytest.mark.parametrize("pack", [zipped, lambda files: gzipped(tarred(files))])
class TestBombs:
    def test_ratio(self, tmp_path, pack):
        bomb = {CONFIG_NAME: b"{}", WEIGHTS_NAME: bytes(30_000_000)}
        assert "200 times" in refused(tmp_path, archive(pack(bomb)))
        assert (tmp_path / "a/b/staging/taken").stat().st_size < 15_000_000

    def test_compressible_weights_are_no_bomb(self, tmp_path, pack):
        half_zero = random.Random(0).randbytes(1_000_000) + bytes(2_000_000)
        sent = archive(pack({CONFIG_NAME: b"{}", WEIGHTS_NAME: half_zero}))
        assert take(tmp_path, sent).weights.read_bytes() == half_zero

    def test_bytes(self, tmp_path, pack):
        sent = archive(pack({CONFIG_NAME: b"{}", WEIGHTS_NAME: bytes(900_000)}))
        with pytest.raises(TooLarge, match="more than 500000 bytes"):
            take(tmp_path, sent, UploadLimits(max_upload_bytes=500_000))

    def test_members(self, tmp_path, pack):
        files = {f"{number}.txt": b"" for number in range(50)} | FOLDER
        assert len(take(tmp_path, archive(pack(files)), UploadLimits(max_members=52)).ignored) == 50
        message = refused(tmp_path / "more", archive(pack(files)), UploadLimits(max_members=51))
        assert "more than 51 members" in message

    def test_config(self, tmp_path, pack):
        with pytest.raises(TooLarge, match=CONFIG_NAME):
            take(
                tmp_path,
                archive(pack({CONFIG_NAME: random.Random(0).randbytes(MAX_CONFIG_BYTES + 1)})),
            )


def test_plain_files_are_counted_together(tmp_path):
    limits = UploadLimits(max_upload_bytes=sum(map(len, FOLDER.values())))
    assert take(tmp_path, uploads(FOLDER), limits).weights.exists()
    limits = UploadLimits(max_upload_bytes=limits.max_upload_bytes - 1)
    with pytest.raises(TooLarge):
        receive(uploads(FOLDER), tmp_path / "more", limits)
    assert "members" in refused(tmp_path / "many", uploads(FOLDER), UploadLimits(max_members=1))


def test_what_a_zip_ignores_costs_nothing(tmp_path):
    files = FOLDER | {"optimizer.pt": bytes(5_000_000)}
    sent = archive(zipped(files))
    assert take(tmp_path, sent, UploadLimits(max_upload_bytes=1_000_000)).ignored == (
        "optimizer.pt",
    )


def test_a_zip_directory_is_bounded_before_it_is_read(tmp_path):
    many = zipped([(f"{number:0200}.txt", b"") for number in range(20_000)])
    assert "directory is too large" in refused(tmp_path, archive(many))


def test_overlong_tar_extensions_are_refused(tmp_path):
    entry = tarfile.TarInfo("README.md")
    entry.pax_headers = {"comment": "x" * (1 << 20)}
    assert "header over" in refused(tmp_path, archive(gzipped(tarred([(entry, b"")]))))


def test_a_global_tar_header_names_no_members(tmp_path):
    for number, (key, fine) in enumerate([("comment", True), ("path", False), ("size", False)]):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", pax_headers={key: "1"}) as target:
            for name, data in FOLDER.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                target.addfile(entry, io.BytesIO(data))
        where = tmp_path / str(number)
        where.mkdir()
        if fine:
            assert take(where, archive(gzipped(out.getvalue()))).config == FOLDER[CONFIG_NAME]
        else:
            assert "global" in refused(where, archive(gzipped(out.getvalue())))


@pytest.mark.parametrize("cut", [1, 8, 30, 200, 300])
def test_truncated_archives_are_refused(tmp_path, cut):
    for kind, data in [("zip", zipped(FOLDER)), ("gz", gzipped(tarred(FOLDER)))]:
        assert "archive is broken" in refused(tmp_path / kind, archive(data[:-cut]))
    short = gzip.compress(tarred(FOLDER)[:2048])
    assert "ends early" in refused(tmp_path / "tar", archive(short))


def test_wrong_checksums_are_refused(tmp_path):
    data = bytearray(gzipped(tarred(FOLDER)))
    data[-5] ^= 1  # of the gzip's length
    assert "broken" in refused(tmp_path / "gz", archive(bytes(data)))
    plain = bytearray(tarred(FOLDER))
    plain[0] ^= 1
    assert "checksum" in refused(tmp_path / "tar", archive(gzipped(bytes(plain))))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as target:
        for name, content in FOLDER.items():
            target.writestr(name, content)
    damaged = out.getvalue().replace(FOLDER[WEIGHTS_NAME][-30:], bytes(30), 1)
    assert "broken" in refused(tmp_path / "zip", archive(damaged))


def test_long_chains_of_tar_extensions_end(tmp_path):
    entry = tarfile.TarInfo("x")
    entry.pax_headers = {"comment": "y"}
    extension = entry.tobuf(tarfile.PAX_FORMAT)[:1024]  # header and data, without the member's own
    assert "1000 members" in refused(tmp_path, archive(gzipped(extension * 5000)))


TAR = tarred(under("a/") | {"a/" + "n" * 150: b"x"})
ZIP = zipped(under("a/") | {"README.md": b"x"})


@given(st.data(), st.sampled_from(["tar", "zip"]))
@settings(max_examples=300, deadline=None)
def test_damaged_archives_are_taken_or_refused(tmp_path_factory, data, kind):
    valid = TAR if kind == "tar" else ZIP
    changed = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    staging = tmp_path_factory.mktemp("staging")
    sent = archive(gzipped(bytes(changed)) if kind == "tar" else bytes(changed))
    said = "taken"
    try:
        assert receive(sent, staging / "taken", LIMITS).weights.exists()
    except AdapterdError as refusal:
        said = refusal.message
    assert 0 < len(said) < 2000
    assert {path.name for path in staging.iterdir()} <= {"taken"}

"""The command line: what it sends, what it prints, and its exit codes, against canned answers."""

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from adapters_store.errors import EngineStartFailed
from server.cli import main
from server.work import _teacher_folder
from tests.server.fake_http import Answer, FakeServer, error, events, fake_server

ADAPTER: dict[str, Any] = {
    "id": "dates",
    "object": "adapter",
    "version": 2,
    "digest": "ab" * 32,
    "kind": "lora",
    "rank": 8,
    "target_modules": ["q_proj", "v_proj"],
    "bytes": 2 << 20,
    "residency": "host",
    "report": {},
}
MODELS = {"data": [{"id": "base", "parent": None}, {"id": "dates", "parent": "base"}]}


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def ran(*arguments: str) -> Ran:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        code = left.value.code
        captured = capsys.readouterr()
        return Ran(code if isinstance(code, int) else 0, captured.out, captured.err)

    return ran


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    with fake_server() as fake:
        monkeypatch.setenv("ADAPTERD_SERVER", fake.url)
        yield fake


@pytest.fixture
def peft_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"t" * 200_000)
    (folder / "optimizer.pt").write_bytes(b"never sent")
    return folder


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("serve",),
        ("complete",),
        ("adapters",),
        ("adapters", "push"),
        ("train",),
        ("jobs",),
        ("jobs", "report"),
        ("demo", "export"),
    ],
)
def test_help(command: tuple[str, ...], run: Run) -> None:
    done = run(*command, "--help")
    assert done.status == 0
    assert "Usage: adapterd" in done.out


@pytest.mark.parametrize(
    ("arguments", "status"), [(("--help",), 0), (("peers", "--scenario", "none-such"), 2)]
)
def test_bench_passes_its_arguments_on(arguments: tuple[str, ...], status: int, run: Run) -> None:
    """Both are answered by the benchmarks' own command line."""
    assert run("bench", *arguments).status == status


def test_bench_is_not_there_without_a_checkout(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An installed package has no benchmarks to run."""
    monkeypatch.setattr("server.cli.BENCHMARKS", tmp_path / "peers.py")
    done = run("bench")
    assert done.status == 2
    assert "source checkout" in done.err
    assert done.err.count("\n") == 1


def test_version(run: Run) -> None:
    assert run("--version").out.startswith("adapterd 0.")


def test_wrong_settings_are_one_line_and_status_2(run: Run) -> None:
    done = run("serve", "--port", "x")
    assert done.status == 2
    assert done.err.startswith("adapterd: --port x: ")
    assert done.err.count("\n") == 1


def test_a_switch_and_its_twin_are_flags(run: Run) -> None:
    wrong = ("--port", "x")  # so that nothing starts
    assert "--port x: " in run("serve", "--prefix-cache", *wrong).err
    assert "--port x: " in run("serve", "--no-prefix-cache", *wrong).err
    assert run("serve", "--prefix-cache", "false", *wrong).status == 2
    assert "--no-prefix-cache" in run("serve", "--help").out


def test_a_flag_that_may_be_repeated(run: Run, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    asked = ("serve", "--port", "0", "--adapter-root", str(tmp_path), "--adapter-root", missing)
    done = run(*asked)
    assert done.status == 2
    assert f"--adapter-root {missing}: there is no such folder" in done.err


@pytest.mark.parametrize("told", ["big", "big=", "=folder", "Big=folder", "../big=folder"])
def test_a_teacher_has_a_name_and_a_model(run: Run, told: str) -> None:
    done = run("worker", "--teacher", told)
    assert done.status == 2
    assert f"--teacher {told}: say NAME=MODEL" in done.err


def test_a_teacher_is_named_once(run: Run) -> None:
    done = run("worker", "--teacher", "big=one", "--teacher", "big=two")
    assert done.status == 2
    assert "--teacher big is given twice" in done.err


def test_a_teacher_that_is_not_there(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    with pytest.raises(EngineStartFailed, match=f"^--teacher big={missing}: there is no such"):
        _teacher_folder("big", str(missing))


def test_no_server(run: Run) -> None:
    done = run("adapters", "list", "--server", "http://127.0.0.1:1")
    assert done.status == 1
    assert "no server answers at http://127.0.0.1:1" in done.err
    assert "adapterd serve" in done.err
    assert done.err.count("\n") == 1


def test_not_a_url(run: Run) -> None:
    done = run("adapters", "list", "--server", "http://[")
    assert done.status == 1
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("url", ["localhost:8000", "127.0.0.1:8000", "/v1", "ftp://host"])
def test_a_url_that_is_no_servers(run: Run, url: str) -> None:
    done = run("adapters", "list", "--server", url)
    assert done.status == 1
    assert f"--server {url}: " in done.err
    assert "http://host:8000" in done.err
    assert done.err.count("\n") == 1


def test_push_sends_what_peft_needs_and_no_more(
    server: FakeServer, run: Run, peft_folder: Path
) -> None:
    server.answers["POST /v1/adapters"] = Answer(ADAPTER, 201)
    done = run("adapters", "push", str(peft_folder), "--name", "dates")
    assert done.status == 0, done.err
    assert "dates uploaded: version 2, abababababab, rank 8 on q_proj, v_proj" in done.out
    body = server.asked[0][1]
    assert b'name="name"\r\n\r\ndates' in body
    assert body.count(b'name="files"') == 2
    assert b"t" * 200_000 in body
    assert b"never sent" not in body


def test_push_again_says_so(server: FakeServer, run: Run, peft_folder: Path) -> None:
    server.answers["POST /v1/adapters"] = Answer(ADAPTER, 200)
    server.answers["GET /v1/adapters/dates"] = Answer(ADAPTER)
    done = run("adapters", "push", str(peft_folder), "--name", "dates")
    assert "already there, unchanged" in done.out
    assert "--adapter dates " in done.out


def test_push_of_an_older_version_says_which_one_the_name_means(
    server: FakeServer, run: Run, peft_folder: Path
) -> None:
    server.answers["POST /v1/adapters"] = Answer(ADAPTER, 200)
    server.answers["GET /v1/adapters/dates"] = Answer(ADAPTER | {"version": 5})
    done = run("adapters", "push", str(peft_folder), "--name", "dates")
    assert "already there, unchanged: version 2" in done.out
    assert "dates still means version 5" in done.out
    assert "--adapter dates@2 " in done.out


def test_push_an_archive(server: FakeServer, run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK-zip")
    server.answers["POST /v1/adapters"] = Answer(ADAPTER, 201)
    done = run("adapters", "push", str(tmp_path / "a.zip"), "-n", "dates", "--json")
    assert json.loads(done.out) == ADAPTER
    assert b'name="file"; filename="a.zip"' in server.asked[0][1]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder / "none", "does not exist"),
        (lambda folder: folder / "optimizer.pt", "no .zip or .tar.gz"),
        (lambda folder: folder.parent, "adapter_config.json is missing"),
    ],
)
def test_push_what_is_no_adapter(
    make: Callable[[Path], Path], says: str, server: FakeServer, run: Run, peft_folder: Path
) -> None:
    done = run("adapters", "push", str(make(peft_folder)), "--name", "dates")
    assert done.status == 1
    assert says in done.err
    assert not server.asked


def test_the_servers_own_message_is_shown(server: FakeServer, run: Run, peft_folder: Path) -> None:
    server.answers["POST /v1/adapters"] = error("tensor lora_A has rank 99 over 64; retrain", 400)
    done = run("adapters", "push", str(peft_folder), "--name", "dates")
    assert (done.status, done.out) == (1, "")
    assert done.err == "adapterd: tensor lora_A has rank 99 over 64; retrain\n"


def test_an_answer_that_is_not_adapterds(server: FakeServer, run: Run) -> None:
    server.answers["GET /v1/adapters"] = Answer(b"<html>nginx", 502, "text/html")
    done = run("adapters", "list")
    assert done.status == 1
    assert "HTTP 502" in done.err


def test_list_reads_every_page(server: FakeServer, run: Run) -> None:
    first = {"object": "list", "data": [ADAPTER], "has_more": True}
    second = {"object": "list", "data": [ADAPTER | {"id": "sql"}], "has_more": False}
    server.answers["GET /v1/adapters?limit=100"] = Answer(first)
    server.answers["GET /v1/adapters?limit=100&after=dates"] = Answer(second)
    assert [row["id"] for row in json.loads(run("adapters", "list", "--json").out)] == [
        "dates",
        "sql",
    ]
    table = run("adapters", "list").out
    for word in ("dates", "sql", "abababababab", "q_proj v_proj", "2 MiB", "host"):
        assert word in table


def test_show(server: FakeServer, run: Run) -> None:
    server.answers["GET /v1/adapters/dates"] = Answer(ADAPTER)
    out = run("adapters", "show", "dates").out
    assert "id              dates\n" in out
    assert json.loads(run("adapters", "show", "dates", "--json").out) == ADAPTER


def test_a_name_cannot_leave_its_place_in_the_path(server: FakeServer, run: Run) -> None:
    assert run("adapters", "show", "../models?x").status == 1
    assert server.asked[0][0] == "GET /v1/adapters/..%2Fmodels%3Fx"


def test_rm_asks(server: FakeServer, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers["GET /v1/adapters/dates"] = Answer(ADAPTER)
    server.answers["DELETE /v1/adapters/dates"] = Answer({"deleted": True})
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert run("adapters", "rm", "dates").status == 1
    assert [asked for asked, _ in server.asked] == ["GET /v1/adapters/dates"]
    assert run("adapters", "rm", "dates", "--yes").out == "dates is deleted\n"
    assert server.asked[-1][0] == "DELETE /v1/adapters/dates"


def packed(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def test_pull_writes_a_folder_or_a_zip(server: FakeServer, run: Run, tmp_path: Path) -> None:
    sent = packed(**{"adapter_config.json": b"{}", "adapter_model.safetensors": b"tensors"})
    server.answers["GET /v1/adapters/dates/download"] = Answer(sent, kind="application/zip")
    assert run("adapters", "pull", "dates", "-o", str(tmp_path / "new" / "d")).status == 0
    assert (tmp_path / "new" / "d" / "adapter_model.safetensors").read_bytes() == b"tensors"
    assert run("adapters", "pull", "dates", "-o", str(tmp_path / "d.zip")).status == 0
    assert (tmp_path / "d.zip").read_bytes() == sent
    again = run("adapters", "pull", "dates", "-o", str(tmp_path / "d.zip"))
    assert again.status == 1
    assert "exists already" in again.err


def test_pull_writes_nothing_outside_its_folder(
    server: FakeServer, run: Run, tmp_path: Path
) -> None:
    sent = packed(**{"../../escaped": b"x", "/absolute": b"y", "deep/er/file": b"z"})
    server.answers["GET /v1/adapters/dates/download"] = Answer(sent, kind="application/zip")
    target = tmp_path / "in" / "dates"
    assert run("adapters", "pull", "dates", "--output", str(target)).status == 0
    written = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert {str(path) for path in written} == {
        f"in/dates/{name}" for name in ("escaped", "absolute", "file")
    }


def test_a_failed_pull_leaves_nothing(server: FakeServer, run: Run, tmp_path: Path) -> None:
    server.answers["GET /v1/adapters/dates/download"] = error("there is no adapter dates", 404)
    assert run("adapters", "pull", "dates", "-o", str(tmp_path / "d")).status == 1
    assert not list(tmp_path.iterdir())


def chat_chunk(text: str | None) -> dict[str, Any]:
    delta = {"role": "assistant"} if text is None else {"content": text}
    return {"choices": [{"index": 0, "delta": delta}]}


def test_complete_chats_with_an_adapter(server: FakeServer, run: Run) -> None:
    server.answers["POST /v1/chat/completions"] = events(
        chat_chunk(None), chat_chunk("2021-"), chat_chunk("05-03 é"), "[DONE]"
    )
    done = run("complete", "--adapter", "dates", "--seed", "7", "third of May 2021")
    assert (done.status, done.out) == (0, "2021-05-03 é\n")
    body = json.loads(server.asked[0][1])
    assert body == {
        "model": "dates",
        "messages": [{"role": "user", "content": "third of May 2021"}],
        "max_tokens": 128,
        "temperature": 0.0,
        "seed": 7,
        "stream": True,
    }


def test_complete_asks_the_base_and_falls_back_to_raw(server: FakeServer, run: Run) -> None:
    server.answers["GET /v1/models"] = Answer(MODELS)
    server.answers["POST /v1/chat/completions"] = error("no chat template", 400, param="messages")
    server.answers["POST /v1/completions"] = events({"choices": [{"text": " time"}]}, "[DONE]")
    assert run("complete", "Once upon a").out == " time\n"
    assert json.loads(server.asked[-1][1])["model"] == "base"
    chat = run("complete", "--chat", "Once upon a")
    assert (chat.status, chat.err) == (1, "adapterd: no chat template\n")
    server.asked.clear()
    assert run("complete", "--raw", "-a", "dates", "Once upon a").status == 0
    assert [asked for asked, _ in server.asked] == ["POST /v1/completions"]


@pytest.mark.parametrize(
    ("chunks", "says"),
    [
        (
            [chat_chunk("half"), {"error": {"message": "the engine died", "code": "x"}}],
            "engine died",
        ),
        ([chat_chunk("half")], "closed the stream"),
    ],
)
def test_a_stream_that_breaks_off_is_an_error(
    chunks: list[Any], says: str, server: FakeServer, run: Run
) -> None:
    server.answers["POST /v1/chat/completions"] = events(*chunks)
    done = run("complete", "-a", "dates", "x")
    assert done.status == 1
    assert done.out == "half"
    assert says in done.err

"""The commands about versions and aliases, against the real app behind a real server."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from server.cli import main
from tests.server.api.conftest import make_house, served
from tests.server.api.stores import adapter_files

Run = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
async def run(tmp_path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """`adapterd ARGUMENTS` in a thread, for the server runs in this loop."""

    def ran(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        captured = capsys.readouterr()
        code = left.value.code
        return (code if isinstance(code, int) else 0), captured.out, captured.err

    async with make_house(tmp_path / "data") as house, served(house.app) as url:
        monkeypatch.setenv("ADAPTERD_SERVER", url)
        yield lambda *arguments: asyncio.to_thread(ran, *arguments)


def peft_folder(folder: Path, seed: int) -> Path:
    folder.mkdir(parents=True)
    for name, data in adapter_files(seed).items():
        (folder / name).write_bytes(data)
    return folder


async def push(run: Run, tmp_path: Path, *seeds: int, name: str = "sql") -> None:
    for seed in seeds:
        folder = peft_folder(tmp_path / f"{name}-{seed}", seed)
        status, _, err = await run("adapters", "push", str(folder), "--name", name)
        assert status == 0, err


async def test_a_release_as_an_operator_does_it(run: Run, tmp_path: Path):
    await push(run, tmp_path, 1, 2)
    assert (await run("adapters", "alias", "sql:prod", "1", "--expect", "0"))[1].startswith(
        "sql:prod means version 1, "
    )
    _, out, _ = await run("adapters", "canary", "sql:prod", "2", "--weight", "0.05")
    assert re.search(r"version 1, \w{12}, canary: 5\.0% version 2", out)
    _, out, _ = await run("adapters", "versions", "sql")
    assert re.search(r"1 +│ \w{12} │ .* │ sql:prod ", out)
    assert re.search(r"2 +│ \w{12} │ .* │ sql sql:prod \(canary\)", out)
    status, out, _ = await run("adapters", "canary", "sql:prod", "2", "--weight", "1")
    assert (status, out.startswith("sql:prod means version 2, ")) == (0, True)
    assert (await run("adapters", "rollback", "sql:prod"))[1].count("canary") == 1
    _, out, _ = await run("adapters", "history", "sql:prod", "--json")
    moves = json.loads(out)
    assert [(one["cause"], one["version"], one["canary"] is not None) for one in moves] == [
        ("rollback", 1, True), ("move", 2, False), ("move", 1, True), ("move", 1, False),
    ]  # fmt: skip
    _, out, _ = await run("adapters", "aliases", "sql")
    assert len(re.findall(r"│ sql(:prod)? +│", out)) == 2


async def test_what_came_too_late_is_one_line_and_status_1(run: Run, tmp_path: Path):
    await push(run, tmp_path, 1, 2)
    status, out, err = await run("adapters", "rollback", "sql", "--expect", "1")
    assert (status, out) == (1, "")
    assert err == (
        "adapterd: sql means version 2 now, not 1; look at it again before changing it\n"
    )


async def test_diff_shows_what_differs_and_both_answers(run: Run, tmp_path: Path):
    await push(run, tmp_path, 1, 2)
    status, out, _ = await run("adapters", "diff", "sql@1", "sql@2", "--prompt", "hello")
    assert status == 0
    assert re.search(r"│ version +│ 1 +│ 2 +│", out)
    assert "│ digest " in out
    assert "│ rank " not in out
    assert "sql@1: hello world\nsql@2: hello world\nthey never part" in out
    assert (await run("adapters", "diff", "sql@1", "sql@1"))[1] == "sql@1 and sql@1 are the same\n"


async def test_a_push_may_leave_the_name_where_it_is(run: Run, tmp_path: Path):
    await push(run, tmp_path, 1)
    folder = peft_folder(tmp_path / "next", 2)
    _, out, _ = await run("adapters", "push", str(folder), "--name", "sql", "--no-promote")
    assert "sql uploaded: version 2" in out
    assert "sql still means version 1" in out
    assert "--adapter sql@2" in out


async def test_prefetch_pin_and_unpin(run: Run, tmp_path: Path):
    await push(run, tmp_path, 1)
    assert (await run("adapters", "prefetch", "sql", "--to", "host"))[1] == (
        "sql is in the host tier, version 1\n"
    )
    assert (await run("adapters", "pin", "sql@1", "--ttl", "60"))[1] == (
        "sql@1 is pinned, version 1, for 60 s\n"
    )
    assert "pinned          true" in (await run("adapters", "show", "sql"))[1]
    assert (await run("adapters", "unpin", "sql"))[1] == "sql is not pinned\n"
    assert "pinned          false" in (await run("adapters", "show", "sql"))[1]


async def test_rm_of_a_version_and_of_an_alias(run: Run, tmp_path: Path):
    await push(run, tmp_path, 1, 2)
    await run("adapters", "alias", "sql:prod", "1")
    status, _, err = await run("adapters", "rm", "sql@1", "--yes")
    assert status == 1
    assert "version 1 of sql is what sql:prod means" in err
    assert (await run("adapters", "rm", "sql:prod", "--yes"))[1] == "sql:prod is deleted\n"
    assert (await run("adapters", "rm", "sql@1", "--yes"))[1] == "sql@1 is deleted\n"
    assert (await run("adapters", "show", "sql@1"))[0] == 1
    assert (await run("adapters", "show", "sql@2"))[0] == 0


async def test_gc_and_verify(run: Run, tmp_path: Path):
    await push(run, tmp_path, 1)
    assert (await run("adapters", "gc"))[1] == "0 removed\n"
    assert (await run("adapters", "verify"))[1] == "1 versions, all whole\n"
    (damaged,) = (tmp_path / "data" / "store" / "sha256").glob("*/*/adapter_config.json")
    damaged.write_bytes(b"{}")
    status, out, err = await run("adapters", "verify")
    assert status == 1
    assert damaged.parent.name in out
    assert "1 of 1 versions are damaged" in err
    damaged.unlink()
    damaged.mkdir()
    status, out, _ = await run("adapters", "verify")
    assert status == 1
    assert "has a folder for a file" in out


async def test_an_import_goes_on_where_it_broke_off(run: Run, tmp_path: Path):
    shelf = tmp_path / "shelf"
    for number in range(4):
        peft_folder(shelf / f"task-{number}", number)
    (shelf / "notes.txt").write_text("not an adapter")
    await push(run, tmp_path, 2, name="task-2")
    status, out, _ = await run("adapters", "import", str(shelf))
    assert (status, out) == (0, "3 uploaded, 1 there already\n")
    assert (await run("adapters", "import", str(shelf)))[1] == "0 uploaded, 4 there already\n"


async def test_an_import_lists_what_was_refused_and_keeps_the_rest(run: Run, tmp_path: Path):
    shelf = tmp_path / "shelf"
    peft_folder(shelf / "good", 1)
    peft_folder(shelf / "Bad Name", 2)
    (peft_folder(shelf / "bare", 4) / "adapter_model.safetensors").unlink()
    broken = peft_folder(shelf / "broken", 3)
    (broken / "adapter_model.safetensors").write_bytes(b"nothing")
    status, out, err = await run("adapters", "import", str(shelf))
    assert (status, out) == (1, "1 uploaded, 0 there already\n")
    assert "3 of 4 were refused" in err
    assert "Bad Name: " in err
    assert "bare: " in err
    assert "broken: " in err
    assert (await run("adapters", "show", "good"))[0] == 0


async def test_an_empty_folder_is_told(run: Run, tmp_path: Path):
    (tmp_path / "shelf").mkdir()
    status, _, err = await run("adapters", "import", str(tmp_path / "shelf"))
    assert status == 1
    assert "holds no adapter" in err


async def test_inspecting_what_cannot_even_be_read_says_so(run: Run, tmp_path: Path):
    junk = tmp_path / "junk.zip"
    junk.write_bytes(b"junk" * 100)
    status, out, err = await run("adapters", "inspect", str(junk))
    assert (status, out) == (1, "")
    assert err.startswith("would be refused: ")

"""README's lines, run as they stand against the demo; only the port is another."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import demo
from tests.e2e.readme import README, Block, blocks, settings_rows
from tests.e2e.server_process import ADAPTERD, ServerProcess, serving, working

DEFAULT_URL = "http://127.0.0.1:8000"
STARTS = ("make ", "adapterd serve", "adapterd worker")  # what the fixture does in its own way


@pytest.fixture(scope="module")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("demo-server")
    with serving(folder) as started, working(folder, "--nice", "0"):
        yield started


@pytest.fixture(scope="module")
def desk(demo_server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to stand in, with `adapterd` on its path as an installation would put it."""
    folder = tmp_path_factory.mktemp("desk")
    command = folder / "bin" / "adapterd"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.join(ADAPTERD)} "$@"\n')
    command.chmod(0o755)
    return folder


def test_the_demo_is_what_is_announced(demo_server: ServerProcess) -> None:
    text = demo_server.text()
    assert "adapterd-demo" in text
    assert all(name in text for name in demo.EXAMPLES)


@pytest.mark.parametrize("language", ["bash", "python"])
def test_its_lines_work(language: str, desk: Path, demo_server: ServerProcess) -> None:
    """In README's order, since later lines use files that earlier ones wrote."""
    chosen = [block for block in blocks() if block.language == language]
    assert chosen
    for block in chosen:
        printed = run(block, desk, demo_server.url)
        missing = [text for text in block.prints if text not in printed.replace('\\"', '"')]
        assert not missing, f"README.md line {block.line} printed:\n{printed}"


def test_its_settings_are_the_settings() -> None:
    text = README.read_text(encoding="utf-8")
    assert [row for row in settings_rows() if row not in text] == []


def run(block: Block, desk: Path, url: str) -> str:
    """What the block prints, its exit status checked."""
    code = block.code.replace(DEFAULT_URL, url)
    lines = [line for line in code.splitlines() if not line.startswith(STARTS)]
    source = "\n".join(lines)
    shell = ["bash", "-euo", "pipefail", "-c", source]
    path = f"{desk / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-c", source] if block.language == "python" else shell,
        cwd=desk, env=os.environ | {"PATH": path, "ADAPTERD_SERVER": url},
        capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, f"README.md line {block.line}:\n{done.stdout}\n{done.stderr}"
    return done.stdout

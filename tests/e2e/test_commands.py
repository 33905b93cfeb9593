"""Every command against a real server, as a person would type them."""

import hashlib
import json
import shlex
import subprocess
from pathlib import Path

import httpx2
import pytest
from safetensors.torch import load_file

from tests.e2e.server_process import ServerProcess, adapterd, serving


def test_it_says_what_it_serves_and_a_request_that_works(server: ServerProcess, base: Path) -> None:
    text = server.text()
    assert f"base      {base.name} (LlamaForCausalLM, " in text
    assert "adapters  none yet" in text
    assert httpx2.get(server.url + "/health/ready").json() == {"status": "ok"}
    curl = next(line for line in text.splitlines() if line.strip().startswith("curl "))
    done = subprocess.run(shlex.split(curl), capture_output=True, timeout=60)
    answer = json.loads(done.stdout)
    assert answer["model"] == base.name
    assert answer["choices"][0]["message"]["content"]


def test_an_adapters_life(
    server: ServerProcess, base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    before = digests(base)
    name, source = next(iter(adapters.items()))
    pushed = adapterd("adapters", "push", str(source), "--name", name, url=server.url)
    assert (pushed.returncode, pushed.stderr) == (0, "")
    assert pushed.stdout.startswith(f"{name} uploaded: version 1, ")
    again = adapterd("adapters", "push", str(source), "--name", name, url=server.url)
    assert "already there, unchanged" in again.stdout

    listed = json.loads(adapterd("adapters", "list", "--json", url=server.url).stdout)
    assert [adapter["id"] for adapter in listed] == [name]
    assert name in adapterd("adapters", "list", url=server.url).stdout
    shown = json.loads(adapterd("adapters", "show", name, "--json", url=server.url).stdout)
    assert (shown["version"], shown["rank"], shown["kind"]) == (1, 8, "lora")

    folder = tmp_path / "pulled"
    pulled = adapterd("adapters", "pull", name, "--output", str(folder), url=server.url)
    assert pulled.returncode == 0, pulled.stderr
    sent, got = (load_file(at / "adapter_model.safetensors") for at in (source, folder))
    assert sent.keys() == got.keys()
    assert all(sent[key].equal(got[key]) for key in sent)

    raw = ("complete", "--raw", "--max-tokens", "12", "Once upon a time")
    of_base = adapterd(*raw, url=server.url)
    of_adapter = adapterd(*raw, "--adapter", name, url=server.url)
    assert of_base.returncode == of_adapter.returncode == 0, of_base.stderr + of_adapter.stderr
    assert of_base.stdout != of_adapter.stdout
    chat = adapterd("complete", "--max-tokens", "12", "--adapter", name, "hi", url=server.url)
    assert chat.returncode == 0, chat.stderr

    assert adapterd("adapters", "rm", name, url=server.url).returncode == 1  # nobody says yes
    assert adapterd("adapters", "rm", name, "--yes", url=server.url).returncode == 0
    missing = adapterd("complete", "--adapter", name, "hi", url=server.url)
    assert missing.returncode == 1
    assert missing.stderr.startswith("adapterd: ")
    assert name in missing.stderr
    assert digests(base) == before


def test_a_refused_adapter_is_one_line_and_is_not_kept(
    server: ServerProcess, adapters: dict[str, Path], tmp_path: Path
) -> None:
    source = next(iter(adapters.values()))
    broken = tmp_path / "broken"
    broken.mkdir()
    tensors = (source / "adapter_model.safetensors").read_bytes()
    (broken / "adapter_model.safetensors").write_bytes(tensors)
    config = json.loads((source / "adapter_config.json").read_text())
    (broken / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    done = adapterd("adapters", "push", str(broken), "--name", "broken", url=server.url)
    assert done.returncode == 1
    assert "use_dora" in done.stderr
    assert done.stderr.count("\n") == 1
    assert adapterd("adapters", "show", "broken", url=server.url).returncode == 1


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("--model", "/no/such/folder"), 1, "no such folder"),
        (("--dtype", "int3"), 2, "--dtype int3"),
        (("--config", "/no/such/file"), 2, "No such file"),
        (("--model", ""), 2, "--model"),
        (("--data-dir", __file__), 2, f"--data-dir {__file__}"),
    ],
)
def test_a_server_that_cannot_start_says_why_in_one_line(
    arguments: tuple[str, ...], status: int, says: str
) -> None:
    done = adapterd("serve", "--port", "0", *arguments)
    assert done.returncode == status, done.stderr
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_said_at_once(server: ServerProcess) -> None:
    port = server.url.rpartition(":")[2]
    done = adapterd("serve", "--port", port, "--model", "/no/such/folder")
    assert done.returncode == 2
    assert f"--port {port}" in done.stderr
    assert "in use" in done.stderr


def test_it_starts_in_a_folder_that_has_packages_of_our_names(base: Path, tmp_path: Path) -> None:
    for name in ("server", "adapters_store", "demo"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    with serving(tmp_path, "--model", str(base), cwd=tmp_path) as started:
        assert httpx2.get(started.url + "/health/ready", trust_env=False).status_code == 200


def test_the_demo_starts_with_settings_that_some_of_its_adapters_do_not_fit(tmp_path: Path) -> None:
    with serving(tmp_path, "--max-rank", "8", "--served-model-name", "clock") as server:
        text = server.text()
        assert "the demo's adapter dates is left out: " in text
        assert "the demo's adapter clock is left out: 'clock' is the base model's name" in text
        listed = httpx2.get(server.url + "/v1/adapters", trust_env=False).json()["data"]
        assert all(adapter["rank"] <= 8 for adapter in listed)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}

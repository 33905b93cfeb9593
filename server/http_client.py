"""How the command line talks to a server: one method per thing asked, errors as one line.

Here: ServerClient, ServerError. Not here: printing, progress bars, options; nothing of the
server's own code, so that any machine can use it against any server.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal
from urllib.parse import quote

import httpx2

LOOPBACK = ("localhost", "127.0.0.1", "::1")
CONNECT_S = 5.0
JOBS = "/v1/fine_tuning/jobs"
READ_S = 600.0  # a queued request may wait long for its first token


class ServerError(Exception):
    """What was asked did not happen. `message` is one line for a person, with the remedy."""

    def __init__(
        self, message: str, *, param: str | None = None, status: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param  # the request's field at fault, if the server named one
        self.status = status  # HTTP's; None: no server answered


@dataclass(frozen=True, slots=True)
class Completion:
    """What `adapterd complete` asks for. `chat` None: chat if the model has a template."""

    prompt: str
    model: str
    chat: bool | None = None
    max_tokens: int = 128
    options: dict[str, Any] = field(default_factory=dict)  # temperature, seed, stop


class ServerClient:
    """One server, by its URL. Close it, or use it in a `with`."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            host, scheme = httpx2.URL(self.url).host, httpx2.URL(self.url).scheme
            if scheme not in ("http", "https") or not host:
                raise httpx2.InvalidURL("it is not the URL of a server")
            self._http = httpx2.Client(
                base_url=self.url,
                timeout=httpx2.Timeout(READ_S, connect=CONNECT_S),
                trust_env=host not in LOOPBACK,  # a proxy cannot reach our own loopback
            )
        except httpx2.InvalidURL as error:
            raise ServerError(f"--server {url}: {error}. Give one like http://host:8000") from None

    def __enter__(self) -> "ServerClient":
        return self

    def __exit__(self, *_error: object) -> None:
        self._http.close()

    def models(self) -> list[dict[str, Any]]:
        """The base first, then adapters, as /v1/models has them."""
        return self._json("GET", "/v1/models")["data"]

    def base_name(self) -> str:
        """What requests without an adapter name as their model."""
        return next(model["id"] for model in self.models() if not model.get("parent"))

    def adapters(self) -> Iterator[dict[str, Any]]:
        """Every adapter, page after page."""
        return self._pages("/v1/adapters", limit=100)

    def adapter(self, name: str) -> dict[str, Any]:
        return self._json("GET", _adapter_path(name))

    def has(self, reference: str) -> bool:
        """Whether the server knows `name` or `name@version`."""
        try:
            self.adapter(reference)
        except ServerError as error:
            if error.status != 404:
                raise
            return False
        return True

    def push(
        self, name: str, files: Sequence[tuple[str, BinaryIO]], *, promote: bool = True
    ) -> tuple[bool, dict[str, Any]]:
        """Upload; (whether it is new, the adapter). One archive, or a PEFT folder's files.

        `promote`: whether the name means it from now on.
        """
        part = "file" if len(files) == 1 else "files"
        sent = [(part, (filename, stream)) for filename, stream in files]
        fields = {"name": name} if promote else {"name": name, "promote": "false"}
        response = self._send("POST", "/v1/adapters", data=fields, files=sent)
        return response.status_code == 201, response.json()

    def download(self, name: str, into: BinaryIO) -> None:
        """The adapter as a zip that PEFT's from_pretrained takes once unpacked."""
        with self._stream("GET", _adapter_path(name) + "/download") as response:
            for chunk in response.iter_bytes():
                into.write(chunk)

    def remove(self, reference: str, *, force: bool = False) -> None:
        """An adapter by `name`, a version by `name@version`, an alias by `name:tag`."""
        name, at, version = reference.partition("@")
        path = _adapter_path(name)
        if at:
            path += "/versions/" + quote(version, safe="")
        elif ":" in name:
            path = _alias_path(name)
        self._send("DELETE", path, params={"force": "true"} if force else {})

    def versions(self, name: str) -> list[dict[str, Any]]:
        """Oldest first."""
        return self._json("GET", _adapter_path(name) + "/versions")["data"]

    def aliases(self, name: str) -> list[dict[str, Any]]:
        """The bare name's first."""
        return self._json("GET", _adapter_path(name) + "/aliases")["data"]

    def alias(self, reference: str) -> dict[str, Any]:
        """What `name` or `name:tag` means."""
        return self._json("GET", _alias_path(reference))

    def move_alias(
        self, reference: str, body: dict[str, Any], expected: int | None
    ) -> dict[str, Any]:
        """`body` as PUT …/aliases/{tag} takes it; `expected` None: whatever it means now."""
        if expected is not None:
            body = body | {"expected_version": expected}
        return self._json("PUT", _alias_path(reference), json=body)

    def history(self, reference: str) -> list[dict[str, Any]]:
        """The alias's latest moves, the newest first."""
        path = _alias_path(reference) + "/history"
        return self._json("GET", path, params={"limit": "1000"})["data"]

    def roll_back(self, reference: str, expected: int | None) -> dict[str, Any]:
        params = {} if expected is None else {"expected_version": str(expected)}
        return self._json("POST", _alias_path(reference) + "/rollback", params=params)

    def prefetch(self, reference: str, to: str) -> dict[str, Any]:
        """Waits until it is there: "host" or "slot"."""
        return self._json("POST", _adapter_path(reference) + "/prefetch", json={"to": to})

    def pin(self, reference: str, ttl_s: int | None) -> dict[str, Any]:
        body = {} if ttl_s is None else {"ttl_seconds": ttl_s}
        return self._json("POST", _adapter_path(reference) + "/pin", json=body)

    def unpin(self, reference: str) -> dict[str, Any]:
        return self._json("DELETE", _adapter_path(reference) + "/pin")

    def compare(self, reference: str, against: str, prompt: str) -> dict[str, Any]:
        """Both greedy answers, and where they part."""
        path = _adapter_path(reference) + "/compare"
        return self._json("POST", path, json={"prompt": prompt, "against": against})

    def collect_garbage(self) -> list[str]:
        """Digests of what was removed."""
        return self._json("POST", "/v1/store/gc")["removed"]

    def verify(self) -> dict[str, Any]:
        """`checked`, a count, and `faults`."""
        return self._json("POST", "/v1/store/verify")

    def upload_file(self, filename: str, stream: BinaryIO) -> dict[str, Any]:
        """A file of training data, kept once every line of it is sound."""
        sent = [("file", (filename, stream))]
        response = self._send("POST", "/v1/files", data={"purpose": "fine-tune"}, files=sent)
        return response.json()

    def file(self, file_id: str) -> dict[str, Any]:
        return self._json("GET", _file_path(file_id))

    def download_file(self, file_id: str, into: BinaryIO) -> None:
        with self._stream("GET", _file_path(file_id) + "/content") as response:
            for chunk in response.iter_bytes():
                into.write(chunk)

    def delete_file(self, file_id: str) -> None:
        self._send("DELETE", _file_path(file_id))

    def create_job(self, body: dict[str, Any]) -> dict[str, Any]:
        """`body` as POST /v1/fine_tuning/jobs takes it."""
        return self._json("POST", JOBS, json=body)

    def jobs(self, metadata: Mapping[str, str] | None = None) -> Iterator[dict[str, Any]]:
        """The newest first, page after page; with `metadata` those that have all of it."""
        wanted = {f"metadata[{key}]": value for key, value in (metadata or {}).items()}
        return self._pages(JOBS, limit=50, **wanted)

    def job(self, job_id: str) -> dict[str, Any]:
        return self._json("GET", _job_path(job_id))

    def job_events(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The newest first, page after page."""
        return self._pages(_job_path(job_id) + "/events", limit=100)

    def change_job(self, job_id: str, wish: Literal["cancel", "pause", "resume"]) -> dict[str, Any]:
        """The job as it is now; a running one only knows yet what is wished."""
        return self._json("POST", f"{_job_path(job_id)}/{wish}")

    def job_report(self, job_id: str) -> dict[str, Any]:
        """What came of a job that has succeeded."""
        return self._json("GET", _job_path(job_id) + "/report")

    def complete(self, ask: Completion) -> Iterator[str]:
        """The answer's text, piece by piece as it is generated."""
        if ask.chat is None:
            try:
                yield from self._chat(ask)
            except ServerError as error:
                if error.param != "messages":  # a base without a chat template
                    raise
                yield from self._completion(ask)
        else:
            yield from self._chat(ask) if ask.chat else self._completion(ask)

    def _chat(self, ask: Completion) -> Iterator[str]:
        body = {"messages": [{"role": "user", "content": ask.prompt}]}
        for chunk in self._events("/v1/chat/completions", ask, body):
            yield from (choice["delta"].get("content") or "" for choice in chunk["choices"])

    def _completion(self, ask: Completion) -> Iterator[str]:
        for chunk in self._events("/v1/completions", ask, {"prompt": ask.prompt}):
            yield from (choice["text"] for choice in chunk["choices"])

    def _events(self, path: str, ask: Completion, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        body |= {"model": ask.model, "max_tokens": ask.max_tokens, "stream": True, **ask.options}
        with self._stream("POST", path, json=body) as response:
            for event in httpx2.EventSource(response):
                if event.data == "[DONE]":
                    return
                chunk = event.json()
                assert isinstance(chunk, dict)
                if "error" in chunk:
                    raise _as_error(chunk, None)
                yield chunk
        raise ServerError(f"{self.url} closed the stream before its end. Ask again.")

    def _pages(self, path: str, *, limit: int, **params: str) -> Iterator[dict[str, Any]]:
        after: dict[str, str] = {}
        while True:
            page = self._json("GET", path, params={"limit": str(limit), **params, **after})
            yield from page["data"]
            if not page["has_more"] or not page["data"]:
                return
            after = {"after": page["data"][-1]["id"]}

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        return self._send(method, path, **options).json()

    def _send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        with self._stream(method, path, **options) as response:
            response.read()
            return response

    @contextmanager
    def _stream(self, method: str, path: str, **options: Any) -> Iterator[httpx2.Response]:
        """The response if it is a success. Raises ServerError for anything else."""
        try:
            with self._http.stream(method, path, **options) as response:
                if not response.is_success:
                    response.read()
                    raise _as_error(_body(response), response.status_code)
                yield response
        except httpx2.ConnectError:
            raise ServerError(
                f"no server answers at {self.url}. Start one with `adapterd serve`, or name "
                "another with --server URL or ADAPTERD_SERVER."
            ) from None
        except httpx2.TimeoutException:
            raise ServerError(f"{self.url} did not answer in time. Is it overloaded?") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ServerError(f"{self.url}: {error or type(error).__name__}") from None


def _adapter_path(name: str) -> str:
    return "/v1/adapters/" + quote(name, safe="")


def _file_path(file_id: str) -> str:
    return "/v1/files/" + quote(file_id, safe="")


def _job_path(job_id: str) -> str:
    return f"{JOBS}/{quote(job_id, safe='')}"


def _alias_path(reference: str) -> str:
    name, _, tag = reference.partition(":")
    return f"{_adapter_path(name)}/aliases/{quote(tag or 'current', safe='')}"


def _body(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _as_error(body: Any, status: int | None) -> ServerError:
    """The server's own message; if the answer is not in its form, what came instead."""
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return ServerError(error["message"], param=error.get("param"), status=status)
    message = f"the answer was HTTP {status}, not adapterd's. Is --server right?"
    return ServerError(message, status=status)


def peft_files(path: Path) -> list[Path]:
    """What to upload for a folder or an archive. Raises ServerError if it is neither."""
    if path.is_file():
        if path.name.endswith((".zip", ".tar.gz", ".tgz")):
            return [path]
        raise ServerError(f"{path} is no .zip or .tar.gz. Name one, or the folder that PEFT saved.")
    if not path.is_dir():
        raise ServerError(f"{path} does not exist.")
    files = [path / "adapter_config.json", path / "adapter_model.safetensors"]
    for missing in (file for file in files if not file.is_file()):
        raise ServerError(
            f"{missing} is missing. A PEFT folder is what `model.save_pretrained(folder)` writes; "
            "adapter_model.bin has to be saved again as safetensors."
        )
    return files

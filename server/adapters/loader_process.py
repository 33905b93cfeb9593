"""Loading in a process of its own: the interpreter's lock, which steps need, is none of its affair.

Here: LoaderProcess, the engine's side, and what crosses between the two. Not here: the other side
(loader_worker.py), how tensors get across (shared_memory.py).
"""

import logging
import os
import socket
import struct
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from adapters_store.blob_place import BlobPlace
from adapters_store.content import LinearShape
from adapters_store.errors import Unavailable, error_from_code
from server.adapters.loading import LoadedIn, LoadTarget
from server.adapters.shared_memory import shared
from server.adapters.slot_rows import SlotLimits
from server.child_process import start_module

LENGTH = struct.Struct("!I")  # of the msgpack that follows

LOAD_DEADLINE_S = 300.0
"""For one adapter: a place that hangs would hold a thread of the worker for good."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Begin:
    """What a worker is told first. Digests to load follow, each a message."""

    place: BlobPlace
    base: str
    base_digest: str
    architecture: str
    modules: dict[str, LinearShape]
    limits: SlotLimits
    dtype: str
    deadline_s: float  # for one load


@dataclass(frozen=True, slots=True)
class Reply:
    """How one load ended. With `error` empty, the memory's descriptor comes along."""

    digest: str
    described_at: int = 0
    load_s: float = 0.0
    error: str = ""  # its code
    message: str = ""


_reply = msgspec.msgpack.Decoder(Reply)


def sendable() -> bool:
    """Whether adapters can be handed from process to process here."""
    return hasattr(os, "memfd_create")


class LoaderProcess:
    """Starts a worker at once, so that it is up when the base is, and another if it dies.

    Must stay true: every future ends while this is open. A dead worker's loads fail, no others; one
    that a load holds for longer than `deadline_s` ends itself.
    """

    def __init__(self, place: BlobPlace, *, deadline_s: float = LOAD_DEADLINE_S) -> None:
        self._place = place
        self._deadline_s = deadline_s
        self._begin: bytes | None = None
        self._worker = _Worker()

    def open(self, target: LoadTarget) -> "LoaderProcess":
        """An OpenLoader. To be called once."""
        base = target.base
        self._begin = msgspec.msgpack.encode(
            Begin(
                self._place,
                base.name,
                base.digest,
                base.architecture,
                dict(base.modules),
                target.limits,
                str(target.dtype).removeprefix("torch."),
                self._deadline_s,
            )
        )
        self._worker.send(self._begin)
        return self

    def load(self, digest: str) -> Future[LoadedIn]:
        """Begins to; a worker that died since is started again, which takes seconds more."""
        assert self._begin is not None, "open comes first"
        future: Future[LoadedIn] = Future()
        while not self._worker.owe(digest, future):
            try:
                self._worker = _Worker()
            except OSError as fault:  # no memory, or no descriptor: the steps go on
                future.set_exception(_unread(digest, f"no process can be started: {fault}"))
                return future
            self._worker.send(self._begin)
        self._worker.send(msgspec.msgpack.encode(digest))
        return future

    def close(self) -> None:
        self._worker.close()


class _Worker:
    """One worker process, and what it owes."""

    def __init__(self) -> None:
        child = start_module("server.adapters.loader_worker", os.environ | {"OMP_NUM_THREADS": "1"})
        self._socket, self._process = child.socket, child.process
        self._lock = threading.Lock()
        self._owed: dict[str, Future[LoadedIn]] = {}
        self._over = self._closed = False
        threading.Thread(target=self._receive, name="loader-reader", daemon=True).start()

    def owe(self, digest: str, future: Future[LoadedIn]) -> bool:
        """Notes whom to tell of `digest`; False if the worker is over."""
        with self._lock:
            if not self._over:
                self._owed[digest] = future
            return not self._over

    def send(self, message: bytes) -> None:
        with suppress(OSError):  # it died: `_receive` tells those whom it owes
            self._socket.sendall(LENGTH.pack(len(message)) + message)

    def close(self) -> None:
        """Ends it at once; it keeps nothing that it would have to put away."""
        self._closed = True
        self._process.kill()

    def _receive(self) -> None:
        try:
            with self._socket:
                while self._receive_one():
                    pass
        except ConnectionError:
            pass  # it died before it had read all that was asked of it
        except Exception:  # whatever it is, what is owed must end
            logger.exception("what the process that loads adapters sent cannot be read")
        self._process.kill()
        status = self._process.wait()
        with self._lock:
            self._over = True
            owed, self._owed = self._owed, {}
        if not self._closed:
            logger.warning("the process that loads adapters ended with status %d", status)
        for digest, future in owed.items():
            future.set_exception(_unread(digest, f"the process that loads them ended ({status})"))

    def _receive_one(self) -> bool:
        """Whether there was a reply. Raises OSError, ValueError."""
        head, handles, _, _ = socket.recv_fds(self._socket, LENGTH.size, 1, socket.MSG_WAITALL)
        try:
            if len(head) < LENGTH.size:
                return False
            (length,) = LENGTH.unpack(head)
            body = self._socket.recv(length, socket.MSG_WAITALL)
            self._settle(_reply.decode(body), handles)
            return True
        finally:
            for handle in handles:
                os.close(handle)

    def _settle(self, reply: Reply, handles: list[int]) -> None:
        with self._lock:
            future = self._owed.pop(reply.digest)
        if reply.error:
            future.set_exception(error_from_code(reply.error, reply.message))
            return
        if not handles:
            future.set_exception(_unread(reply.digest, "too many files are open here"))
            return
        try:
            adapter = shared(handles[0], reply.described_at)
        except (OSError, RuntimeError) as fault:  # no memory left to map it, or to pin it
            future.set_exception(_unread(reply.digest, str(fault)))
        else:
            future.set_result(LoadedIn(adapter, reply.load_s))


def _unread(digest: str, why: str) -> Unavailable:
    """Our trouble, and not the adapter's: another try may well do."""
    return Unavailable(f"adapter {digest[:12]} could not be loaded now: {why}; try again")

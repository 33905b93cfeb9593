"""The process that loads adapters: `python -m server.adapters.loader_worker FD`.

FD is one end of a socket pair. It ends when the other end closes: it never outlives the engine.
"""

import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import BinaryIO

import msgspec
import torch

from adapters_store.content import AdapterSource, BaseModel
from adapters_store.errors import AdapterdError, AdapterLoadFailed, Unavailable
from server.adapters.loader_process import LENGTH, Begin, Reply
from server.adapters.loading import LOADER_THREADS, LoadTarget, load
from server.adapters.shared_memory import share

PR_SET_PDEATHSIG = 1  # linux/prctl.h
OVERDUE = 3  # exit status: a load took too long

logger = logging.getLogger(__name__)


def main(descriptor: int) -> None:
    """Loads what it is told to until the engine is gone. Never returns."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a signal to the group: the engine ends us
    # Killed with the engine, even while it is stopped and cannot see that the other end is closed.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    logging.basicConfig(format="%(asctime)s %(levelname)s loader: %(message)s")
    with suppress(OSError):  # a sandbox may forbid it, and then all are equal
        # Only what the steps' threads leave over, and no core that one of them wakes up for: a
        # step's threads wait for each other, so to hold up one is to hold up all. Niceness alone
        # was not enough. The engine leaves something over (Engine.step).
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    sock = socket.socket(fileno=descriptor)
    stream = sock.makefile("rb")
    begin = msgspec.msgpack.decode(_next(stream), type=Begin)
    base = BaseModel(begin.base, begin.base_digest, begin.architecture, begin.modules)
    target = LoadTarget(base, begin.limits, getattr(torch, begin.dtype))
    worker = _Worker(sock, begin.place.reader(), target, begin.deadline_s)
    gc.freeze()  # else a load waits now and then until all that was imported is looked at
    threads = ThreadPoolExecutor(LOADER_THREADS)
    while True:
        threads.submit(worker.load, msgspec.msgpack.decode(_next(stream), type=str))


class _Worker:
    """Loads from several threads; sends one reply at a time."""

    def __init__(
        self, sock: socket.socket, source: AdapterSource, target: LoadTarget, deadline_s: float
    ) -> None:
        self._socket = sock
        self._source = source
        self._target = target
        self._deadline_s = deadline_s
        self._sending = threading.Lock()

    def load(self, digest: str) -> None:
        deadline = threading.Timer(self._deadline_s, self._give_up, (digest,))
        deadline.daemon = True
        deadline.start()
        try:
            self._load(digest)
        finally:
            deadline.cancel()

    def _load(self, digest: str) -> None:
        try:
            loaded = load(self._source, digest, self._target)
            handle, described_at = share(loaded.adapter)
        except AdapterdError as error:
            self._send(Reply(digest, error=error.code, message=error.message))
        except Exception as error:  # the loader's own fault must not end the others
            logger.exception("adapter %s could not be read", digest)
            message = f"adapter {digest[:12]} could not be read: {type(error).__name__}: {error}"
            self._send(Reply(digest, error=AdapterLoadFailed.code, message=message))
        else:
            self._send(Reply(digest, described_at, loaded.load_s), handle)
            os.close(handle)

    def _give_up(self, digest: str) -> None:
        """Ends the process: nothing else ends a read of a mount that hangs."""
        message = (
            f"adapter {digest[:12]} could not be read within {self._deadline_s:.0f} seconds: the "
            "place that holds it may hang"
        )
        logger.error("%s; loading starts afresh", message)
        self._send(Reply(digest, error=Unavailable.code, message=message))
        os._exit(OVERDUE)

    def _send(self, reply: Reply, *handles: int) -> None:
        body = msgspec.msgpack.encode(reply)
        with self._sending, suppress(OSError):  # the engine is gone; `_next` ends us
            # The descriptor travels with the first bytes.
            socket.send_fds(self._socket, [LENGTH.pack(len(body))], handles)
            self._socket.sendall(body)


def _next(stream: BinaryIO) -> bytes:
    """The next message. Ends the process if there will be none."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        os._exit(0)
    return stream.read(*LENGTH.unpack(head))


if __name__ == "__main__":
    main(int(sys.argv[1]))

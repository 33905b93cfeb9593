"""A TCP relay that can be shut: how a test takes a real server off the network, and back on."""

import socket
import threading
from contextlib import suppress


class Door:
    """Relays connections from a port of its own to `target`, while it is open.

    Shut, its port refuses connections, and those it had are cut.
    """

    def __init__(self, target: int) -> None:
        """`target`: a port on 127.0.0.1. Opens."""
        self._target = target
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self.port = 0
        self.open()

    def open(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen()
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def shut(self) -> None:
        with self._lock:
            cut(self._listener)
            for connection in self._open:
                cut(connection)
            self._open.clear()

    def __enter__(self) -> "Door":
        return self

    def __exit__(self, *_error: object) -> None:
        self.shut()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return  # shut
            far = socket.create_connection(("127.0.0.1", self._target))
            with self._lock:
                if listener is not self._listener or listener.fileno() < 0:
                    cut(near)
                    cut(far)
                    return
                self._open |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._relay, args=(source, sink), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass  # cut
        with self._lock:
            for connection in (source, sink):
                cut(connection)
                self._open.discard(connection)


def cut(connection: socket.socket) -> None:
    """Ends it for whoever is waiting on it, too, which closing alone does not."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()

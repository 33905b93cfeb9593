"""A command on a terminal of its own, as a person would see and interrupt it."""

import os
import pty
import re
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress

from tests.e2e.server_process import ROOT

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """Runs a command on a pseudo-terminal; ends it when the `with` does."""

    def __init__(self, command: Sequence[str]) -> None:
        self._keys, screen = pty.openpty()
        environ = {key: one for key, one in os.environ.items() if key not in ("NO_COLOR", "TERM")}
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=screen, stdout=screen, stderr=screen,
            env=environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
            preexec_fn=lambda: os.login_tty(screen),
        )  # fmt: skip
        os.close(screen)
        self._shown = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        os.close(self._keys)

    def text(self) -> str:
        """All that was shown so far, without colours and the cursor's moves."""
        return CONTROL.sub("", self._shown.decode(errors="replace"))

    def press_ctrl_c(self) -> None:
        os.write(self._keys, b"\x03")

    def _read(self) -> None:
        with suppress(OSError):  # how a pseudo-terminal says that its other end is closed
            while data := os.read(self._keys, 4096):
                self._shown += data

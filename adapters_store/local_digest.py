"""The digest that a store would give files that are still on somebody's disk."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from adapters_store.members import DEFAULT_LIMITS, UploadedFile
from adapters_store.package import write_package
from adapters_store.upload import receive


def local_digest(paths: Sequence[Path]) -> str:
    """Of one .zip or .tar.gz, or of a PEFT folder's files. Raises InvalidAdapter, TooLarge.

    Needs as much room in the temporary folder as the adapter's tensors take, twice.
    """
    with tempfile.TemporaryDirectory(prefix="adapterd-") as scratch, ExitStack() as opened:
        files = [UploadedFile(path.name, opened.enter_context(path.open("rb"))) for path in paths]
        received = receive(files, Path(scratch, "weights"), DEFAULT_LIMITS)
        return write_package(received.config, received.weights, Path(scratch, "package"))

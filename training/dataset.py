"""A training file as a whole: every bad line by number and reason, before anything runs.

Here: check_dataset, examples_of, format_of. Not here: one line's form (examples.py), where files
rest, tokens. Memory is bounded by the longest line taken, however long the file or its lines are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from adapters_store.errors import AdapterdError, InvalidDataset
from training.examples import MAX_LINE_BYTES, Example, Format, read_example

MAX_FAULTS = 100
"""So many bad lines are told; the others are counted."""


@dataclass(frozen=True, slots=True)
class LineFault:
    line: int  # from 1
    reason: str


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """What a file holds."""

    format: Format | None  # None: no good line
    examples: int  # good lines
    bytes: int
    faults: tuple[LineFault, ...]  # the first MAX_FAULTS
    fault_count: int

    def require_sound(self) -> None:
        """Raises InvalidDataset, naming the first lines at fault, unless all are good."""
        require_no_faults(self.faults, self.fault_count, field="training_file")


def require_no_faults(faults: Sequence[LineFault], count: int, *, field: str) -> None:
    """Raises InvalidDataset (param `field`), naming the first of `count` lines at fault, if any."""
    if not count:
        return
    told = "; ".join(f"line {fault.line}: {fault.reason}" for fault in faults[:5])
    lines = "1 line" if count == 1 else f"{count} lines"
    more = f"; and {count - 5} more" if count > 5 else ""
    raise InvalidDataset(f"{lines} cannot be trained on; {told}{more}", param=field)


def check_dataset(file: BinaryIO) -> DatasetReport:
    """Reads all of a JSONL file from where it stands."""
    found: Format | None = None
    good = size = count = 0
    faults: list[LineFault] = []

    def blame(number: int, reason: str) -> None:
        nonlocal count
        count += 1
        if len(faults) < MAX_FAULTS:
            faults.append(LineFault(number, reason))

    number = 0
    for number, (line, length) in enumerate(_lines(file), 1):
        size += length
        if line is None:
            blame(number, f"the line is {length} bytes long; at most {MAX_LINE_BYTES} are taken")
            continue
        try:
            form, _ = read_example(line)
        except AdapterdError as bad:
            blame(number, bad.message)
            continue
        found = found or form
        if form != found:
            blame(number, f"the line is {form}, those before are {found}; use one form per file")
        else:
            good += 1
    if not number:
        blame(1, "the file is empty; expected one JSON object per line")
    return DatasetReport(found, good, size, tuple(faults), count)


def examples_of(file: BinaryIO) -> Iterator[Example]:
    """The examples of a file that `check_dataset` found sound, in order."""
    for line, _ in _lines(file):
        assert line is not None, "the file is not the one that was checked"
        yield read_example(line)[1]


def format_of(file: BinaryIO) -> Format:
    """The form of a file that `check_dataset` found sound, by its first line."""
    line, _ = next(_lines(file))
    assert line is not None, "the file is not the one that was checked"
    return read_example(line)[0]


def _lines(file: BinaryIO) -> Iterator[tuple[bytes | None, int]]:
    """Each line without its newline, or None if it is too long; and its bytes with it."""
    while line := file.readline(MAX_LINE_BYTES + 2):
        length = len(line)
        piece, whole = line, True
        while not piece.endswith(b"\n") and (piece := file.readline(MAX_LINE_BYTES)):
            length += len(piece)
            whole = False
        yield (line.rstrip(b"\r\n") if whole else None), length

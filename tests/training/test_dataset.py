"""A whole training file: lines at fault by number, in bounded memory."""

import io
import json
import tracemalloc

import pytest

from adapters_store.errors import InvalidDataset
from training.dataset import MAX_FAULTS, check_dataset, examples_of, format_of
from training.examples import MAX_LINE_BYTES, PromptExample

GOOD = b'{"prompt": "a", "completion": "b"}\n'
CHAT = (
    json.dumps(
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
            ]
        }
    ).encode()
    + b"\n"
)


def test_a_sound_file_is_counted_and_read() -> None:
    for data in (GOOD * 3, GOOD * 2 + GOOD.rstrip(), GOOD.replace(b"\n", b"\r\n") * 3):
        report = check_dataset(io.BytesIO(data))
        assert (report.format, report.examples, report.bytes) == ("prompt", 3, len(data))
        assert report.faults == ()
        report.require_sound()
        assert (
            list(examples_of(io.BytesIO(data))) == [PromptExample(prompt="a", completion="b")] * 3
        )


def test_lines_at_fault_are_told_by_number_and_the_rest_is_read() -> None:
    data = GOOD + b"{}\n" + GOOD + b"\n" + CHAT + GOOD + b"\xff\n"
    report = check_dataset(io.BytesIO(data))
    assert (report.format, report.examples, report.bytes) == ("prompt", 3, len(data))
    assert [fault.line for fault in report.faults] == [2, 4, 5, 7]
    assert "use one form per file" in report.faults[2].reason
    with pytest.raises(InvalidDataset, match=r"4 lines .* line 2: .*; line 4: "):
        report.require_sound()


def test_an_empty_file_is_at_fault() -> None:
    report = check_dataset(io.BytesIO(b""))
    assert (report.format, report.examples, report.fault_count) == (None, 0, 1)
    assert "the file is empty" in report.faults[0].reason


def test_many_faults_are_counted_but_not_kept() -> None:
    report = check_dataset(io.BytesIO(b"{}\n" * 1000 + GOOD))
    assert (len(report.faults), report.fault_count, report.examples) == (MAX_FAULTS, 1000, 1)
    with pytest.raises(InvalidDataset, match="and 995 more") as told:
        report.require_sound()
    assert len(told.value.message) < 4000


class Endless(io.RawIOBase):
    """So many bytes without a newline, then a good line."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._tail = io.BytesIO(b"\n" + GOOD)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        if not self._left:
            return self._tail.readinto(buffer)
        count = min(len(buffer), self._left)
        buffer[:count] = b"x" * count
        self._left -= count
        return count


def test_a_line_of_a_hundred_megabytes_is_told_in_bounded_memory() -> None:
    tracemalloc.start()
    try:
        report = check_dataset(io.BufferedReader(Endless(100_000_000)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [fault.line for fault in report.faults] == [1]
    assert report.faults[0].reason.startswith("the line is 100000001 bytes long; at most")
    assert report.examples == 1
    assert peak < 8 * MAX_LINE_BYTES


@pytest.mark.parametrize("beyond", [-1, 0, 1, 2, 3])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_the_longest_line_that_is_taken(beyond: int, end: bytes) -> None:
    shell = len(GOOD) - 2
    line = GOOD.rstrip().replace(b'"b"', b'"' + b"b" * (MAX_LINE_BYTES - shell + beyond) + b'"')
    assert len(line) == MAX_LINE_BYTES + beyond
    report = check_dataset(io.BytesIO(line + end))
    assert report.fault_count == (1 if beyond > 0 else 0)
    assert report.examples == (0 if beyond > 0 else 1)


@pytest.mark.parametrize(("data", "form"), [(GOOD * 2, "prompt"), (CHAT.rstrip(), "chat")])
def test_the_first_line_says_a_sound_files_form(data: bytes, form: str) -> None:
    assert format_of(io.BytesIO(data)) == form

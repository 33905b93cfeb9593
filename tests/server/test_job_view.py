"""What a followed job looks like: the lines of a pipe, and the picture of a terminal."""

import io
import time
from typing import Any

import pytest
from rich.console import Console

from server.cli_terminal import span_text
from server.job_view import LAST_LINES, LiveView, PlainView


def job(step: int, *, left_s: float = 100, **progress: Any) -> dict[str, Any]:
    told = {"step": step, "steps": 300, "loss": 0.43211, "tokens_per_second": 5210.4, "epoch": 1.2}
    finish = int(time.time() + left_s)
    return {
        "id": "ftjob-1", "status": "running", "progress": told | progress,
        "estimated_finish": finish,
    }  # fmt: skip


def event(message: str, level: str = "info") -> dict[str, Any]:
    return {"message": message, "level": level, "created_at": int(time.time())}


def picture(view: LiveView, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as captured:
        console.print(view.picture())
    return captured.get().splitlines()


def lines(captured: pytest.CaptureFixture[str]) -> list[str]:
    return [line[10:] for line in captured.readouterr().out.splitlines()]


def test_progress_is_a_line_now_and_then_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainView(every_s=60)
    for step in (1, 2, 3, 299, 300, 300):
        view.show(job(step))
    assert [line.split("  ")[0] for line in lines(capsys)] == ["step 1/300", "step 300/300"]
    eager = PlainView(every_s=0)
    for step in (1, 2, 2, 3):
        eager.show(job(step))
    assert len(lines(capsys)) == 3


def test_what_is_not_known_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainView(every_s=0)
    view.show({"id": "ftjob-1", "status": "queued", "progress": None})
    view.show(job(0, loss=None, tokens_per_second=None, epoch=None) | {"estimated_finish": None})
    view.show(job(7, loss=None, left_s=-5))
    assert lines(capsys) == ["step 7/300  epoch 1.2  5,210 tokens/s  0 s left"]


def test_levels_are_told_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    PlainView(every_s=0).show(job(0), [event("one"), event("two", "warn"), event("three", "error")])
    assert lines(capsys) == ["one", "warn: two", "error: three"]


def test_the_picture_fits_a_terminal() -> None:
    view = LiveView()
    assert picture(view, 80) == [""]
    view.show(job(120), [event(f"number {n} " + "long " * 40) for n in range(LAST_LINES + 3)])
    shown = picture(view, 80)
    assert len(shown) == 3 + LAST_LINES
    assert shown[0] == "ftjob-1  running"
    assert shown[1].startswith("━" * 24)
    assert shown[2].startswith("step 120/300  epoch 1.2  loss 0.4321  5,210 tokens/s  1 min ")
    assert [line.split()[2] for line in shown[3:]] == [str(n + 3) for n in range(LAST_LINES)]
    assert all(len(line) <= 80 for line in shown)


def test_what_a_job_says_is_text_and_no_markup() -> None:
    view = LiveView()
    view.show(job(1), [event("list[/int] [bold]x[/bold]")])
    view.say("none [red]here[/red]")
    assert [line[10:] for line in picture(view, 80)[3:]] == [
        "list[/int] [bold]x[/bold]",
        "none [red]here[/red]",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (100, "1 min 40 s"), (4000, "1 h 6 min")],
)
def test_spans(seconds: float, text: str) -> None:
    assert span_text(seconds) == text

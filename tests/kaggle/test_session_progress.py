"""Test reading the progress line of a session from every form in which Kaggle returns a log."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from claris_kaggle.core import console
from claris_kaggle.core.console import Progress
from claris_kaggle.kaggle import session_progress
from claris_kaggle.kaggle.kernel_output import Kernel, _log_lines
from claris_kaggle.kaggle.session_progress import _ask_progress, _progress_line, _ProgressReader
from tests.kaggle.test_launch import push
from tests.support.kaggle_double import FakeKaggle, Fault, log_of

Call = Callable[..., tuple[int, str, str]]
LINE = "fold 0 epoch 2/6: 3,500 of 12,000 images (29%), 50/s, 2 min left, AUC 0.9712"


def format_json_log(*lines: str) -> str:
    return json.dumps([{"stream_name": "stderr", "time": n, "data": line + "\n"} for n, line in enumerate(lines)])


def format_progress(total: int, done: int, note: str) -> str:
    """Return a line as the progress bar of a session prints it."""
    progress = Progress("fold 3 epoch 1/6", total, "images", note=note)
    progress.done = done
    progress.start -= 10
    return progress.line()


@pytest.mark.parametrize("form", ["text", "json", "carriage returns"])
def test_the_newest_line_of_progress_is_found_in_every_form_of_a_log(form: str) -> None:
    lines = ["$ claris train --data x", "fold 0 epoch 1/6: 1 of 12,000 images (0%)", LINE, "UserWarning: something"]
    log = {"text": "\n".join(lines), "json": format_json_log(*lines), "carriage returns": "\r".join(lines)}[form]
    assert _progress_line(log) == LINE


@pytest.mark.parametrize(("total", "done", "note"), [(7, 3, ""), (220_025, 219_000, "AUC 0.9712"), (100, 0, "x: y")])
def test_what_a_session_prints_is_what_is_found(total: int, done: int, note: str) -> None:
    line = format_progress(total, done, note)
    assert _progress_line(f"something else\n{line}\n  return f(x)\n") == line


def test_later_news_goes_before_an_earlier_bar() -> None:
    end = "fold 0 epoch 1/6: loss 0.1234, validation loss 0.1, AUC 0.9712, accuracy 0.97, 2,100 images/s"
    assert _progress_line(f"{LINE}\n{end}") == end
    assert _progress_line(f"{LINE}\n$ claris predict --data /kaggle/input") == "claris predict"
    assert _progress_line("fold 1: finished, validation AUC 0.97; about 5 h left") != ""
    assert len(_progress_line("fold 1: finished, " + "x" * 1000)) <= session_progress._MAX_LINE_LENGTH


@pytest.mark.parametrize("log", ["", "[]", "null", "{}", "[1, 2]", "Traceback (most recent call last):\nKeyError: 'x'"])
def test_a_log_without_progress_gives_none(log: str) -> None:
    assert _progress_line(log) == ""


def test_parts_of_lines_are_put_together() -> None:
    assert _log_lines(json.dumps([{"data": LINE[:20]}, {"data": LINE[20:] + "\nnext"}])) == [LINE, "next"]


@pytest.fixture
def running(kaggle: FakeKaggle, tmp_path: Path) -> Kernel:
    """Return a kernel whose session runs and has a log."""
    kaggle.statuses = ["RUNNING"]
    kernel = push(tmp_path / "k")
    kaggle.kernels["me/claris-train"][0].log = log_of("$ claris train", LINE, "[W] a warning of another library")
    return kernel


@pytest.mark.usefixtures("quick")
def test_a_running_sessions_stream_is_read_without_waiting_for_its_end(kaggle: FakeKaggle, running: Kernel) -> None:
    kaggle.stream_seconds = 60.0
    start = time.monotonic()
    assert _ask_progress(running) == LINE
    assert time.monotonic() - start < kaggle.stream_seconds
    assert kaggle.count("claris-train") == 1 and kaggle.count("ListKernelSessionOutput") == 0


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("status", [403, 404, 500])
def test_without_a_stream_the_saved_log_is_read_and_without_that_there_is_no_line_and_no_error(
    kaggle: FakeKaggle, running: Kernel, status: int
) -> None:
    kaggle.faults["GET"] = [Fault(status=status) for _ in range(2)]
    kaggle.faults["ListKernelSessionOutput"] = [Fault(status=status)]
    assert _ask_progress(running) == ""
    kaggle.kernels["me/claris-train"][0].statuses = ["COMPLETE"]
    assert _ask_progress(running) == LINE and kaggle.count("ListKernelSessionOutput") == 2


@pytest.mark.usefixtures("quick")
def test_a_log_is_asked_for_once_a_minute_and_the_line_before_is_kept(
    running: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([LINE, "", "later"])
    monkeypatch.setattr(session_progress, "_ask_progress", lambda kernel: next(answers))
    reader = _ProgressReader()
    assert [reader.line(running) for _ in range(5)] == [LINE] * 5
    monkeypatch.setattr(session_progress, "_PROGRESS_INTERVAL", 0.0)
    assert [reader.line(running) for _ in range(2)] == [LINE, "later"]


@pytest.mark.usefixtures("quick")
def test_status_follows_a_session_to_its_end_and_shows_its_progress(
    kaggle: FakeKaggle, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_LOG_INTERVAL", 0.0)
    monkeypatch.setattr(console, "_AGE_SHARE", 0.0)
    kaggle.statuses = ["QUEUED", "RUNNING", "RUNNING", "COMPLETE"]
    record = ["--record", tmp_path / "kernels.json"]
    assert call("push", "train", *record)[0] == 0
    kaggle.kernels["me/claris-train"][0].log = log_of(LINE)
    code, shown, said = call("status", "--follow", "--poll", 0, *record)
    assert (code, shown) == (0, "me/claris-train version 1: complete\n")
    assert re.search(rf"me/claris-train running for \d+ s: {re.escape(LINE)}\n", said)
    assert "me/claris-train queued for" in said

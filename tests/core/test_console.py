"""Test progress output: a bar on a terminal, a few lines in a log, and only from rank 0."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
import termios

import pytest

from claris_kaggle.core import console
from claris_kaggle.core.console import Progress, StatusLine
from tests.conftest import environment

HOUR = 3600.0


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr(console, "time", one)
    monkeypatch.setattr(console, "_START_TIME", 0.0)
    return one


def go_through(progress: Progress, clock: Clock, seconds: float, steps: int) -> None:
    """Let the progress come to its end, in equal steps."""
    with progress:
        for _ in range(steps):
            clock.now += seconds / steps
            progress.update(progress.total // steps)


@pytest.mark.parametrize(("columns", "bar"), [(0, False), (80, True)])
def test_a_terminal_that_says_it_has_no_width_gets_lines(
    columns: int, bar: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, columns))
    with os.fdopen(master, "rb"), os.fdopen(slave, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with Progress("pack", 10) as progress:
            assert (progress.bar is not None) == bar


@pytest.mark.parametrize("hours", [0.5, 2.0, 12.0])
def test_the_log_of_a_run_of_hours_stays_under_a_few_hundred_lines(
    clock: Clock, capsys: pytest.CaptureFixture[str], hours: float
) -> None:
    for fold in range(5):
        for epoch in range(6):
            go_through(Progress(f"fold {fold} epoch {epoch + 1}/6", 176_000, "images"), clock, hours * 100, 1375)
            go_through(Progress("validation", 44_000, "images"), clock, hours * 10, 86)
            console.log_info("fold, epoch, loss, AUC")
        go_through(Progress("8 views", 101_000), clock, hours * 60, 200)
    lines = capsys.readouterr().err.splitlines()
    assert clock.now == pytest.approx(hours * HOUR)
    assert 30 < len(lines) < 300
    print(f"lines in a log of {hours:g} hours: {len(lines)}")


def test_a_line_comes_every_thirty_seconds_and_says_how_fast_how_long_and_how_good(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress("fold 0 epoch 2/6", 12_000, "images", done=2_000, note="AUC 0.9712")
    for _ in range(100):
        clock.now += 1.0
        progress.update(50)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0] == "fold 0 epoch 2/6: 3,500 of 12,000 images (29%), 50/s, 3 min left, AUC 0.9712"


def test_only_rank_0_speaks(clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    go_through(Progress("pack train", 1000), clock, 1000, 100)
    StatusLine().show("for ever")
    console.log_info("something")
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_with_speed_time_left_and_auc() -> None:
    program = (
        "import time; from claris_kaggle.core.console import Progress, messages_on_stderr\n"
        "with messages_on_stderr(), Progress('fold 0 epoch 1/6', 100, 'images', note='AUC 0.9712') as progress:\n"
        "    for _ in range(5): time.sleep(0.15); progress.update(10)\n"
    )
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    done = subprocess.Popen([sys.executable, "-c", program], stderr=theirs, env=environment())
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other side is closed
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert done.wait() == 0
    text = shown.decode()
    assert "fold 0 epoch 1/6:  50%" in text and "50/100" in text and " images/s, AUC 0.9712" in text

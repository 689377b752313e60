"""Log messages and progress of rank 0, under the logger `claris_kaggle`.

A program that uses the library sees them after it configures that logger. The command line shows them on stderr, with
progress bars on a terminal (see `messages_on_stderr`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, Self

if TYPE_CHECKING:
    from tqdm import tqdm

LOGGER = logging.getLogger("claris_kaggle")

_LOG_INTERVAL = 30.0
# Keeps long logs short: the interval grows to a sixtieth of the age of the process. Twelve hours give about 250 lines.
_AGE_SHARE = 1 / 60
_START_TIME = time.monotonic()
_STDERR_LOCK = threading.Lock()


class _StderrHandler(logging.Handler):
    """A handler that writes each message as a line on the current `sys.stderr`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the message to stderr."""
        print(record.getMessage(), file=sys.stderr, flush=True)


@contextlib.contextmanager
def messages_on_stderr(level: int = logging.INFO) -> Iterator[None]:
    """Show log messages and progress on stderr within the context, as the command line does.

    Args:
        level: the lowest level to show; `logging.DEBUG` adds tracebacks of errors.
    """
    if _is_on_stderr():  # a command called by another command
        yield
        return
    handler, previous = _StderrHandler(), (LOGGER.level, LOGGER.propagate)
    LOGGER.addHandler(handler)
    LOGGER.setLevel(level)
    LOGGER.propagate = False
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(previous[0])
        LOGGER.propagate = previous[1]


@contextlib.contextmanager
def silence_native_code() -> Iterator[None]:
    """Discard what C libraries, such as libtiff, write to the process's stderr within the context.

    A lock lets in one thread at a time. Otherwise a second thread would save and restore the redirected stderr.
    """
    with Path(os.devnull).open("wb") as discard, _redirect_stderr(discard):
        yield


@contextlib.contextmanager
def capture_native_code() -> Iterator[bytearray]:
    """Collect what C libraries write to the process's stderr within the context; it is in the bytearray afterwards.

    One thread at a time, as in `silence_native_code`. What other threads write at that time is collected as well.
    """
    collected = bytearray()
    with tempfile.TemporaryFile() as stream:
        with _redirect_stderr(stream):
            yield collected
        stream.seek(0)
        collected += stream.read()


@contextlib.contextmanager
def _redirect_stderr(target: IO[bytes]) -> Iterator[None]:
    """Redirect the process's stderr to `target` within the context. Does nothing if stderr is closed."""
    with _STDERR_LOCK:
        try:
            saved_stderr = os.dup(2)
        except OSError:  # stderr is closed
            yield
            return
        try:
            os.dup2(target.fileno(), 2)
            yield
        finally:
            os.dup2(saved_stderr, 2)
            os.close(saved_stderr)


def _shows_progress() -> bool:
    """Return True if a progress bar can be drawn: on a terminal, when messages go to stderr."""
    return _is_on_stderr() and is_rank_zero() and sys.stderr.isatty() and _terminal_width() > 0


def _terminal_width() -> int:
    """Return the columns of the terminal on stderr. Some terminals report 0; they cannot show a progress bar."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 0


def _is_on_stderr() -> bool:
    """Return True within `messages_on_stderr`."""
    return any(isinstance(handler, _StderrHandler) for handler in LOGGER.handlers)


def is_rank_zero() -> bool:
    """Return True if this process logs for all ranks: rank 0, or no rank at all."""
    return os.environ.get("RANK", "0") == "0"


def log_info(text: str) -> None:
    """Log one message at level INFO, on rank 0 only."""
    if is_rank_zero():
        LOGGER.info("%s", text)


def format_command(*words: object) -> str:
    """Return a command of `claris` as typed in a shell.

    >>> format_command("report", "my run")
    "claris report 'my run'"
    """
    return shlex.join(["claris", *map(str, words)])


def format_duration(seconds: float) -> str:
    """Return a duration in seconds as readable text.

    >>> format_duration(45.2), format_duration(114), format_duration(6000)
    ('45 s', '2 min', '1 h 40 min')
    """
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class StatusLine:
    """A status line: updated in place on a terminal, otherwise logged every 30 seconds, later less often."""

    def __init__(self, **bar: Any) -> None:
        self.last_logged = time.monotonic()
        self.bar: tqdm[NoReturn] | None = None
        if _shows_progress():
            from tqdm import tqdm

            self.bar = tqdm(leave=False, **(bar or {"bar_format": "{desc}"}))

    def show(self, text: str) -> None:
        """Show the current text."""
        if self.bar is not None:
            self.bar.set_description_str(text)
        else:
            self.log_if_due(text)

    def log_if_due(self, text: str) -> None:
        """Log the text if enough time has passed since the last line."""
        now = time.monotonic()
        if now - self.last_logged >= max(_LOG_INTERVAL, _AGE_SHARE * (now - _START_TIME)):
            self.last_logged = now
            log_info(text)

    def close(self) -> None:
        """Remove the line from the terminal."""
        if self.bar is not None:
            self.bar.close()

    def __enter__(self) -> Self:
        """Return this object."""
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the line, also after an error."""
        self.close()


class Progress(StatusLine):
    """A progress bar on a terminal; otherwise a log line every 30 seconds, later less often.

    Args:
        name: the task, for example "pack train".
        total: number of units.
        unit: name of the units, for example "patches".
        done: number of units that were done before.
        note: text after the numbers, for example the latest AUC.
    """

    def __init__(self, name: str, total: int, unit: str = "patches", done: int = 0, note: str = "") -> None:
        super().__init__(total=total, initial=done, desc=name, unit=f" {unit}", postfix=note or None)
        self.name, self.total, self.unit, self.note = name, total, unit, note
        self.done = self.initial = done
        self.start = self.last_logged

    def update(self, amount: int) -> None:
        """Add `amount` finished units."""
        self.done += amount
        if self.bar is not None:
            self.bar.set_postfix_str(self.note, refresh=False)
            self.bar.update(amount)
        else:
            self.log_if_due(self.line())

    def rate(self) -> float:
        """Return the units per second since the start."""
        return (self.done - self.initial) / max(time.monotonic() - self.start, 1e-9)

    def line(self) -> str:
        """Return the state in one line: count, share, rate and remaining time."""
        rate = self.rate()
        remaining = f", {format_duration((self.total - self.done) / rate)} left" if rate > 0 else ""
        note = f", {self.note}" if self.note else ""
        share, digits = self.done / max(self.total, 1), 0 if rate >= 10 else 1
        count = f"{self.done:,} of {self.total:,} {self.unit}"
        return f"{self.name}: {count} ({share:.0%}), {rate:,.{digits}f}/s{remaining}{note}"

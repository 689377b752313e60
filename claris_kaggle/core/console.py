"""Log messages and progress of rank 0 under the logger `claris_kaggle`.

A program that uses the library sees them when it configures that logger. The command line shows them on stderr, with
progress bars on a terminal (`messages_on_stderr`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, Self

LOGGER = logging.getLogger("claris_kaggle")

_LINE_EVERY = 30.0
# A log of hours must stay readable: a process that is older speaks once in a sixtieth of its age, which makes
# some 250 lines in twelve hours.
_AGE_SHARE = 1 / 60
_START_TIME = time.monotonic()


class _StderrHandler(logging.Handler):
    """Write each message as a line on the present `sys.stderr`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the message."""
        print(record.getMessage(), file=sys.stderr, flush=True)


@contextlib.contextmanager
def messages_on_stderr(level: int = logging.INFO) -> Iterator[None]:
    """Show log messages and progress on stderr within the context, as the command line does.

    Args:
        level: the lowest level that is shown; `logging.DEBUG` adds tracebacks of errors.
    """
    if _is_on_stderr():  # a command that is called within another one
        yield
        return
    handler, kept = _StderrHandler(), (LOGGER.level, LOGGER.propagate)
    LOGGER.addHandler(handler)
    LOGGER.setLevel(level)
    LOGGER.propagate = False
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(kept[0])
        LOGGER.propagate = kept[1]


def _shows_progress() -> bool:
    """Return True if a progress bar may be drawn: on a terminal, when messages go to stderr."""
    return _is_on_stderr() and is_speaker() and sys.stderr.isatty()


def _is_on_stderr() -> bool:
    """Return True within `messages_on_stderr`."""
    return any(isinstance(handler, _StderrHandler) for handler in LOGGER.handlers)


def is_speaker() -> bool:
    """Return True if this process logs for all ranks: rank 0, or no rank at all."""
    return os.environ.get("RANK", "0") == "0"


def log_info(text: str) -> None:
    """Log one message at level INFO, on rank 0 alone."""
    if is_speaker():
        LOGGER.info("%s", text)


def format_duration(seconds: float) -> str:
    """A time as one says it.

    >>> format_duration(45.2), format_duration(750), format_duration(6000)
    ('45 s', '12 min', '1 h 40 min')
    """
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class Waiting:
    """What is waited for, in one line: written anew on a terminal, elsewhere said every 30 seconds at first."""

    def __init__(self, **bar: Any) -> None:
        self.spoken = time.monotonic()
        self.bar: Any = None
        if _shows_progress():
            from tqdm import tqdm

            self.bar = tqdm(leave=False, **(bar or {"bar_format": "{desc}"}))

    def show(self, text: str) -> None:
        """The line as it is now."""
        if self.bar is not None:
            self.bar.set_description_str(text)
        else:
            self.speak(text)

    def speak(self, text: str) -> None:
        """Say the line if the last one was long enough ago."""
        now = time.monotonic()
        if now - self.spoken >= max(_LINE_EVERY, _AGE_SHARE * (now - _START_TIME)):
            self.spoken = now
            log_info(text)

    def close(self) -> None:
        """Take the line away from the terminal."""
        if self.bar is not None:
            self.bar.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Take the line away, also on failure."""
        self.close()


class Progress(Waiting):
    """A bar on a terminal; elsewhere a line every 30 seconds at first.

    Args:
        name: what is being done, as in "pack train".
        total: how many units there are in all.
        unit: what is counted, as in "patches".
        done: how many of them were done before.
        note: stands behind the figures, as the AUC so far.
    """

    def __init__(self, name: str, total: int, unit: str = "patches", done: int = 0, note: str = "") -> None:
        super().__init__(total=total, initial=done, desc=name, unit=f" {unit}", postfix=note or None)
        self.name, self.total, self.unit, self.note = name, total, unit, note
        self.done = self.initial = done
        self.start = self.spoken

    def update(self, amount: int) -> None:
        """Count `amount` more units done."""
        self.done += amount
        if self.bar is not None:
            self.bar.set_postfix_str(self.note, refresh=False)
            self.bar.update(amount)
        else:
            self.speak(self.line())

    def rate(self) -> float:
        """Units a second since the beginning."""
        return (self.done - self.initial) / max(time.monotonic() - self.start, 1e-9)

    def line(self) -> str:
        """The state in one line: count, share, rate and the time that is left."""
        rate = self.rate()
        left = f", {format_duration((self.total - self.done) / rate)} left" if rate > 0 else ""
        note = f", {self.note}" if self.note else ""
        share, digits = self.done / max(self.total, 1), 0 if rate >= 10 else 1
        return (
            f"{self.name}: {self.done:,} of {self.total:,} {self.unit} ({share:.0%}), {rate:,.{digits}f}/s{left}{note}"
        )

"""When to stop: the time limit, the signals that ask for it, and the end of the process that started this one.

A signal only raises a flag, which the loops look at between steps, so that what is on disk when
the process ends is always a whole checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from claris_kaggle.core import platforms
from claris_kaggle.core.errors import UsageError

# Kept back for the end of a long run; a short limit gives up a twentieth of itself.
_RESERVE_SECONDS = 60.0
_RESERVE_SHARE = 0.05


def parse_duration(text: str) -> float:
    """Seconds of a duration such as 11h30m, 90m, 45s or 3600.

    >>> parse_duration("11h30m"), parse_duration("45s"), parse_duration("90")
    (41400.0, 45.0, 90.0)

    Raises:
        UsageError: it is not such a duration, or not above zero.
    """
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d*)?)s?)?", text.strip().lower())
    seconds = (
        sum(float(part or 0) * unit for part, unit in zip(match.groups(), (3600, 60, 1), strict=True)) if match else 0
    )
    if seconds <= 0:
        raise UsageError(f"a time of {text!r}", "hours, minutes and seconds are needed, as in 11h30m or 90m or 45s")
    return seconds


def exit_with_parent(known: int = 0, every: float = 0.5) -> None:
    """End this process at once, from now on, when the one that started it has ended.

    Args:
        known: the other's number, where it may have ended before this was called: then nobody tells a new parent.
    """
    platforms._exit_with_process(known, every)


@contextlib.contextmanager
def restore_signals() -> Iterator[tuple[int, ...]]:
    """Restore the handlers of the signals that stop a program when the context ends.

    Returns:
        The numbers of those signals; empty outside the main thread, where Python allows no handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield ()
        return
    kept = {number: signal.getsignal(number) for number in platforms.STOP_SIGNALS}
    try:
        yield tuple(kept)
    finally:
        for number, handler in kept.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class Stopper:
    """Knows whether it is time to stop.

    Args:
        limit: seconds from now after which the process should be gone; None for no limit.
    """

    def __init__(self, limit: float | None = None) -> None:
        self.limit = limit
        self.start = self.last = time.monotonic()
        self.slowest = 0.0
        self.signal = ""

    @contextlib.contextmanager
    def listen(self) -> Iterator[None]:
        """Let SIGTERM, SIGINT and Ctrl-Break ask for a stop within the context, instead of ending the process.

        A second one ends it, but for a rank: torchrun passes signals on that the rank may have got itself. Outside the
        main thread, where Python allows no handlers, signals keep their effect.
        """
        with restore_signals() as numbers:
            for number in numbers:
                signal.signal(number, self.hear)
            yield

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Take note of the signal and give the next one its usual effect."""
        self.signal = platforms.signal_name(number)
        if "RANK" not in os.environ:
            signal.signal(number, signal.SIG_DFL)

    def tick(self) -> None:
        """Count the time since the last tick as one indivisible piece of work."""
        now = time.monotonic()
        self.slowest = max(self.slowest, now - self.last)
        self.last = now

    def pause(self) -> None:
        """Begin to count anew: the time since the last tick was none that comes again."""
        self.last = time.monotonic()

    def left(self) -> float:
        """Seconds until the limit; infinite without one."""
        return float("inf") if self.limit is None else self.limit - (time.monotonic() - self.start)

    def limit_from_now(self) -> float | None:
        """Return the limit for processes that start now: one second at least, so that they stop in order."""
        return None if self.limit is None else max(1.0, self.left())

    def reason(self) -> str:
        """Why to stop now, or an empty text: a signal, or too little time for the slowest work seen so far."""
        if self.signal:
            return self.signal
        if self.limit is None:
            return ""
        reserve = max(2 * self.slowest, min(_RESERVE_SECONDS, _RESERVE_SHARE * self.limit))
        return "the time limit" if self.left() < reserve else ""

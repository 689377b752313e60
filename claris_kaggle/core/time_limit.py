"""Time limit, stop signals, and detection that the parent process has ended.

A signal only sets a flag. Loops check it between steps, so that the process always ends with a complete checkpoint on
disk.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from claris_kaggle.core import platforms
from claris_kaggle.core.errors import UsageError

# Time reserved for the end of a run: 60 s, or a twentieth of a short limit.
_RESERVE_SECONDS = 60.0
_RESERVE_SHARE = 0.05
_PARENT_CHECK_SECONDS = 0.5


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as 11h30m, 90m, 45s or 3600.

    >>> parse_duration("11h30m"), parse_duration("45s"), parse_duration("90")
    (41400.0, 45.0, 90.0)

    Raises:
        UsageError: the text is not a duration, or not above zero.
    """
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d*)?)s?)?", text.strip().lower())
    seconds = (
        sum(float(part or 0) * unit for part, unit in zip(match.groups(), (3600, 60, 1), strict=True)) if match else 0
    )
    if seconds <= 0:
        raise UsageError(f"invalid duration {text!r}", "expected for example 11h30m, 90m or 45s")
    return seconds


def exit_with_parent(parent_id: int) -> None:
    """End this process as soon as the process that started it has ended.

    Args:
        parent_id: process id of the parent, in case it ends before this call; 0 uses the current parent.
    """
    parent = os.getppid()

    def watch() -> None:
        # When the parent ends, the parent id changes; on Windows it stays the same.
        while os.getppid() == parent and platforms._is_alive(parent_id or parent):
            time.sleep(_PARENT_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def exit_process(code: int) -> NoReturn:
    """Exit the process. A rank under torchrun exits without the interpreter's clean-up.

    A rank calls this when its files are written and synced. With the clean-up, the C++ destructors of torch's gloo
    threads sometimes abort the process ("terminate called without an active exception").
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if "RANK" in os.environ:
        os._exit(code)
    sys.exit(code)


@contextlib.contextmanager
def restore_signals() -> Iterator[tuple[int, ...]]:
    """Restore the handlers of the stop signals when the context ends.

    Returns:
        The numbers of these signals; empty outside the main thread, where Python allows no handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield ()
        return
    handlers = {number: signal.getsignal(number) for number in platforms.STOP_SIGNALS}
    try:
        yield tuple(handlers)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class Stopper:
    """Tells a loop when to stop, because of the time limit or a signal.

    Args:
        limit: seconds from now until the process must have ended; None for no limit.
    """

    def __init__(self, limit: float | None = None) -> None:
        self.limit = limit
        self.start = self.last_tick = time.monotonic()
        self.slowest_step = 0.0
        self.signal = ""

    @contextlib.contextmanager
    def listen(self) -> Iterator[None]:
        """Handle SIGTERM, SIGINT and Ctrl-Break within the context as a request to stop.

        A second signal ends the process, except in a rank: torchrun forwards signals that the rank may have received
        already. Outside the main thread, where Python allows no handlers, signals keep their default effect.
        """
        with restore_signals() as numbers:
            for number in numbers:
                signal.signal(number, self.handle_signal)
            yield

    def handle_signal(self, number: int, frame: FrameType | None) -> None:
        """Record the signal, and restore the default effect of the next one."""
        self.signal = platforms.signal_name(number)
        if "RANK" not in os.environ:
            signal.signal(number, signal.SIG_DFL)

    def tick(self) -> None:
        """Record the time since the last tick as one step, which cannot be interrupted."""
        now = time.monotonic()
        self.slowest_step = max(self.slowest_step, now - self.last_tick)
        self.last_tick = now

    def skip_interval(self) -> None:
        """Do not count the time since the last tick as a step. Call this after work that occurs only once."""
        self.last_tick = time.monotonic()

    def remaining_seconds(self) -> float:
        """Return the seconds until the limit; infinite without a limit."""
        return float("inf") if self.limit is None else self.limit - (time.monotonic() - self.start)

    def limit_from_now(self) -> float | None:
        """Return the limit for processes that start now, at least one second, so that they stop cleanly."""
        return None if self.limit is None else max(1.0, self.remaining_seconds())

    def reason(self) -> str:
        """Return the reason to stop now: a signal, or too little time for another step. Empty to continue."""
        if self.signal:
            return self.signal
        if self.limit is None:
            return ""
        reserve = max(2 * self.slowest_step, min(_RESERVE_SECONDS, _RESERVE_SHARE * self.limit))
        return "the time limit" if self.remaining_seconds() < reserve else ""

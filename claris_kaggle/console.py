"""Talk and progress on stderr, from rank 0 alone; results on stdout are the verbs' own."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, Self

LINE_EVERY = 30.0
# A log of hours must stay readable: a process that is older speaks once in a sixtieth of its age, which makes
# some 250 lines in twelve hours.
AGE_SHARE = 1 / 60
BORN = time.monotonic()


def is_speaker() -> bool:
    """Whether this process is the one that talks: rank 0, or no rank at all."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """One line of talk on stderr."""
    if is_speaker():
        print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A time as one says it.

    >>> duration(45.2), duration(750), duration(6000)
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
        if is_speaker() and sys.stderr.isatty():
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
        if now - self.spoken >= max(LINE_EVERY, AGE_SHARE * (now - BORN)):
            self.spoken = now
            say(text)

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
        left = f", {duration((self.total - self.done) / rate)} left" if rate > 0 else ""
        note = f", {self.note}" if self.note else ""
        share, digits = self.done / max(self.total, 1), 0 if rate >= 10 else 1
        return (
            f"{self.name}: {self.done:,} of {self.total:,} {self.unit} ({share:.0%}), {rate:,.{digits}f}/s{left}{note}"
        )

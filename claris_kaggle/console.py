"""Talk and progress on stderr, from rank 0 alone; results on stdout are the verbs' own."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

LINE_EVERY = 30.0


def is_speaker() -> bool:
    """Whether this process is the one that talks: rank 0, or no rank at all."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """One line of talk on stderr."""
    if is_speaker():
        print(text, file=sys.stderr, flush=True)


class Progress:
    """A bar on a terminal; elsewhere a line every 30 seconds.

    Args:
        name: what is being done, as in "pack train".
        total: how many units there are in all.
        unit: what is counted, as in "patches".
        done: how many of them were done before.
    """

    def __init__(self, name: str, total: int, unit: str = "patches", done: int = 0) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = self.initial = done
        self.note = ""
        self.start = self.spoken = time.monotonic()
        self.bar: Any = None
        if is_speaker() and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=done, desc=name, unit=f" {unit}", leave=False)

    def update(self, amount: int, note: str = "") -> None:
        """Count `amount` more units done; `note` stands behind the figures."""
        self.done += amount
        self.note = note or self.note
        if self.bar is not None:
            self.bar.set_postfix_str(self.note, refresh=False)
            self.bar.update(amount)
        elif time.monotonic() - self.spoken >= LINE_EVERY:
            self.spoken = time.monotonic()
            say(self.line())

    def rate(self) -> float:
        """Units a second since the beginning."""
        return (self.done - self.initial) / max(time.monotonic() - self.start, 1e-9)

    def line(self) -> str:
        """The state in one line: count, share, rate and what is left in seconds."""
        rate = self.rate()
        left = f", {(self.total - self.done) / rate:,.0f} s left" if rate > 0 else ""
        note = f", {self.note}" if self.note else ""
        share = self.done / max(self.total, 1)
        return f"{self.name}: {self.done:,} of {self.total:,} {self.unit} ({share:.0%}), {rate:,.0f}/s{left}{note}"

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()

    def __enter__(self) -> Progress:
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Take the bar away, also on failure."""
        self.close()

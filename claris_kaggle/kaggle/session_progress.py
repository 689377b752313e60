"""Read the progress line of a running session from its log."""

from __future__ import annotations

import re
import time

from claris_kaggle.core.console import StatusLine, format_duration, log_info
from claris_kaggle.core.errors import KaggleError
from claris_kaggle.kaggle import api
from claris_kaggle.kaggle.kernel_output import END_STATES, Kernel, _log_lines, kernel_status

_STREAM_SECONDS, _CALL_SECONDS, _PROGRESS_INTERVAL = 10.0, 40.0, 60.0
_MAX_LINE_LENGTH = 160
# As `console.Progress` prints it: "fold 0 epoch 2/6: 3,500 of 12,000 images (29%), 50/s, 2 min left, AUC 0.97".
_PROGRESS = re.compile(r"[^:$]{1,60}: [\d,]+ of [\d,]+ \w+ \(\d+ ?%\)")
# Lines that `claris train` and `claris predict` print at the end of an epoch or a fold.
_SUMMARY = re.compile(r"fold \d+\b[^:]*: .*\b(AUC|finished|predicted|resuming)\b")
# The line that the session prints before each command.
_COMMAND = re.compile(r"\$ (claris \w+)")


def _progress_line(log: str) -> str:
    """Return the newest progress line of a log; an empty string if there is none.

    >>> _progress_line("$ claris train --data x\\nfold 0 epoch 1/6: 20 of 80 images (25%), 9.0/s, 7 s left\\nWarning")
    'fold 0 epoch 1/6: 20 of 80 images (25%), 9.0/s, 7 s left'
    """
    for line in reversed(_log_lines(log)):
        command = _COMMAND.match(line)
        if command:
            return command.group(1)
        if _PROGRESS.match(line) or _SUMMARY.match(line):
            return line if len(line) <= _MAX_LINE_LENGTH else line[: _MAX_LINE_LENGTH - 1] + "…"
    return ""


def _ask_progress(kernel: Kernel) -> str:
    """Return the session's progress line from its log on Kaggle; an empty string if the log is not available."""
    about = {"ref": kernel.ref, "version": kernel.version, "seconds": _STREAM_SECONDS}
    try:
        return _progress_line(api._call_once(api._RUNNING_LOG, deadline=_CALL_SECONDS, **about))
    except KaggleError:
        return ""


def follow_session(kernel: Kernel, poll: float) -> tuple[str, str]:
    """Wait until the session has ended, showing its progress, and return its state and failure message.

    Raises:
        KaggleError: Kaggle refused permanently. Temporary failures are retried.
    """
    reader, start = _ProgressReader(), time.monotonic()
    with StatusLine() as waiting:
        while True:
            try:
                status, message = kernel_status(kernel)
                if status in END_STATES:
                    return status, message
                waiting.show(reader.describe(kernel, status, time.monotonic() - start))
            except KaggleError as error:
                if not error.retryable:
                    raise
                log_info(f"{error.found}; checking again in {poll:.0f} s")
            time.sleep(poll)


class _ProgressReader:
    """The newest progress line of each running session, requested at most once a minute."""

    def __init__(self) -> None:
        self.requested_at: dict[tuple[str, int], float] = {}
        self.lines: dict[tuple[str, int], str] = {}

    def line(self, kernel: Kernel) -> str:
        """Return the session's progress line. It is cached for one minute."""
        key, now = (kernel.ref, kernel.version), time.monotonic()
        if key not in self.requested_at or now - self.requested_at[key] >= _PROGRESS_INTERVAL:
            # An answer without a progress line keeps the previous one.
            self.lines[key] = _ask_progress(kernel) or self.lines.get(key, "")
            self.requested_at[key] = time.monotonic()
        return self.lines[key]

    def describe(self, kernel: Kernel, status: str, waited: float) -> str:
        """Return the state of a session, its duration, and its progress line if available.

        Args:
            kernel: the running version.
            status: its state, as Kaggle names it.
            waited: seconds since the push, or since the start of watching.
        """
        line = self.line(kernel) if status == "RUNNING" else ""
        return f"{kernel.ref} {status.lower()} for {format_duration(waited)}" + (f": {line}" if line else "")

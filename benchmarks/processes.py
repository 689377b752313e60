"""Run commands in processes of their own, and measure their time, CPU time and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Usage:
    """The resources that a process used.

    Attributes:
        seconds: wall time.
        cpu_seconds: CPU time of all its threads and child processes.
        megabytes: peak of its memory and that of its child processes, in 1e6 bytes, without pages of mapped files.
    """

    seconds: float
    cpu_seconds: float
    megabytes: float


def read_megabytes(pid: int) -> float:
    """Return the memory of a process and its children without mapped files, in 1e6 bytes; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    kilobytes = sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
    return kilobytes * 1024 / 1e6 + sum(read_megabytes(int(child)) for child in children)


@contextmanager
def poll_peak_memory(pid: int, interval: float) -> Iterator[list[float]]:
    """Poll the memory of a process every `interval` seconds. The list that is yielded holds the peak, in 1e6 bytes."""
    peak, ended = [0.0], threading.Event()

    def poll() -> None:
        while not ended.wait(interval):
            peak[0] = max(peak[0], read_megabytes(pid))

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def measure_command(
    command: Sequence[str], *, stdin: str = "", interval: float = 0.1, **options: Any
) -> tuple[Usage, str]:
    """Run a command, and return what it used and what it printed.

    Args:
        command: program and arguments.
        stdin: text for the standard input of the command.
        interval: seconds between two readings of the memory.
        options: further options of `subprocess.Popen`.
    Raises:
        SystemExit: the command failed.
    """
    began, before = time.monotonic(), os.times()
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    with poll_peak_memory(process.pid, interval) as peak:
        output, _ = process.communicate(stdin)
    after = os.times()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}\n{output[-2000:]}")
    cpu_seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return Usage(time.monotonic() - began, cpu_seconds, peak[0]), output


def claris_command(*arguments: object) -> list[str]:
    """Return the command line of a command of the library."""
    return [sys.executable, "-m", "claris_kaggle", *map(str, arguments)]


def measure_claris(*arguments: object, **options: Any) -> Usage:
    """Run a command of the library, and return what it used."""
    return measure_command(claris_command(*arguments), **options)[0]


def run_claris(*arguments: object) -> None:
    """Run a command of the library. Its log goes to stderr, its results are dropped."""
    subprocess.run(claris_command(*arguments), check=True, stdout=subprocess.DEVNULL)

"""Runs of the tests: commands in their own processes, copies, and comparisons."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from claris_kaggle.core.paths import DataDir, RunDir
from tests.conftest import claris, contents, environment

PREDICTIONS = ("oof.csv", "test.csv")


def places(data: DataDir, cache: Path, run: Path) -> list[str]:
    return ["--data", str(data.root), "--cache", str(cache), "--run", str(run)]


def predictions_of(run: Path) -> dict[str, bytes]:
    return {name: value for name, value in contents(run).items() if Path(name).name in PREDICTIONS}


def weights_of(run: Path) -> dict[str, bytes]:
    return {name: value for name, value in contents(run).items() if name.endswith("model.safetensors")}


def copy_run(source: RunDir, target: Path, *, predicted: bool = True) -> Path:
    """A copy of the run, to be changed."""
    shutil.copytree(source.root, target)
    if not predicted:
        for path in [*target.rglob("*.csv"), *target.rglob("predictions.json")]:
            if path.name in (*PREDICTIONS, "predictions.json"):
                path.unlink()
        (target / "metrics.json").unlink(missing_ok=True)
    return target


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "claris_kaggle", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment(), start_new_session=True, text=True
    )


def wait_for_line(process: subprocess.Popen[str], words: tuple[str, ...]) -> None:
    """Read what the process says until one of the words, or its end."""
    assert process.stderr is not None
    for line in process.stderr:
        if any(word in line for word in words):
            return


def kill_all(process: subprocess.Popen[str]) -> None:
    """End the started command and the processes that it started, at once."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


def kill_at_random(arguments: list[object], kills: int, generator: random.Random, longest: float) -> int:
    """Run the command, killing it at random moments of its work; returns the kills made."""
    made = 0
    for _ in range(kills):
        with start(*arguments) as process:
            wait_for_line(process, ("training tiny", "predicted"))
            time.sleep(generator.uniform(0, longest))
            if process.poll() is None:
                kill_all(process)
                made += 1
    return made


def run_through_kills(arguments: list[object], kills: int, generator: random.Random, longest: float) -> int:
    """Run the command, killing it at random moments of its work, then let it end; returns the kills made."""
    made = kill_at_random(arguments, kills, generator, longest)
    done = claris(*arguments)
    assert done.returncode == 0, done.stderr
    return made


def children_of(pid: int) -> list[int]:
    """The processes of ranks that the process started."""
    listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    rows = [line.split(None, 1) for line in listed.splitlines()]
    return sorted(int(row[0]) for row in rows if "claris_kaggle" in row[1])


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])

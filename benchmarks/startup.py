"""Measure the CPU time of commands that load no library, and of a small `predict` and `ensemble`, mostly imports.

python -m benchmarks.startup
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.full_size import write_predictions
from benchmarks.processes import measure_claris
from benchmarks.timing import QUICK, Result, interleave, publish
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data.synthetic import generate

LIBRARIES = "import torch, timm, albumentations, sklearn.metrics, pandas"
LIMIT = 0.3  # CPU seconds of a command that loads no library
ROWS = 100 if QUICK else 1200
CLARIS = ("-m", "claris_kaggle")


def time_python(*arguments: str) -> Callable[[], float]:
    """Return a function that measures the CPU seconds of a Python process with these arguments."""

    def measure() -> float:
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"},
        )  # fmt: skip
        _, process.returncode, usage = os.wait4(process.pid, 0)
        return usage.ru_utime + usage.ru_stime

    return measure


def time_small_commands(root: Path) -> dict[str, Callable[[], float]]:
    """Return functions that measure the CPU seconds of `predict` with a tiny network and `ensemble` with two runs."""
    os.environ["OMP_NUM_THREADS"] = "1"  # a second thread would wait actively, and that counts as CPU time
    data = DataDir(generate(root / "data", train=ROWS, test=20))
    places = ("--data", data.root, "--cache", root / "cache")
    folds, run = root / "folds.csv", RunDir(root / "tiny")
    recipe = ("--model", "tiny", "--weights", "none", "--epochs", 1, "--fold", 0)
    measure_claris("folds", *places, "--out", folds)
    measure_claris("train", *places, "--folds", folds, "--run", run.root, *recipe)
    runs = [one.root for one in write_predictions(root, data, folds)[:2]]

    def predict() -> float:
        for path in (run.fold(0).oof, run.fold(0).test):
            path.unlink(missing_ok=True)
        return measure_claris("predict", *places, "--run", run.root, "--views", 1).cpu_seconds

    def ensemble() -> float:
        output = root / "submission.csv"
        return measure_claris("ensemble", *runs, "--data", data.root, "--out", output).cpu_seconds

    return {
        f"claris predict, tiny network, one fold of {ROWS:,} patches": predict,
        f"claris ensemble, two runs of {ROWS:,} patches": ensemble,
    }


def main() -> None:
    """Run the benchmark, print the result and save it."""
    light_commands = {
        "claris --help": time_python(*CLARIS, "--help"),
        "claris train --help": time_python(*CLARIS, "train", "--help"),
        "claris train, missing flag": time_python(*CLARIS, "train"),
        "claris trian, unknown command": time_python(*CLARIS, "trian"),
    }
    libraries = {
        "importing torch, for comparison": time_python("-c", "import torch"),
        "importing the libraries, for comparison": time_python("-c", LIBRARIES),
    }
    with tempfile.TemporaryDirectory() as root:
        small_commands = time_small_commands(Path(root))
        python = {"Python alone": time_python("-c", "pass")}
        rates = interleave({**python, **light_commands, **small_commands, **libraries}, rounds=9)
    slowest = max(max(rates[name]) for name in light_commands)
    facts = {f"slowest response, of {LIMIT} s allowed": f"{slowest:.2f} s"}
    publish(Result("startup", "start-up", "s of CPU time", rates, facts))


if __name__ == "__main__":
    main()

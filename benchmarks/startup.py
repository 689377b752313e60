"""CPU time of commands that need no library, and of a small `predict` and `ensemble`, which are mostly imports.

python -m benchmarks.startup
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.full_size import use, write_predictions
from benchmarks.timing import QUICK, Result, interleave, publish
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data.synthetic import generate

LIBRARIES = "import torch, timm, albumentations, sklearn.metrics, pandas"
MOST = 0.3
ROWS = 100 if QUICK else 1200
CLARIS = ("-m", "claris_kaggle")


def cpu_seconds(*arguments: str) -> Callable[[], float]:
    """The CPU time of a Python process with these arguments, its output thrown away."""

    def measured() -> float:
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"},
        )  # fmt: skip
        _, process.returncode, usage = os.wait4(process.pid, 0)
        return usage.ru_utime + usage.ru_stime

    return measured


def small_commands(root: Path) -> dict[str, Callable[[], float]]:
    """The CPU time of `predict` with a tiny network, and of `ensemble` with two runs, on a folder that is made here."""
    os.environ["OMP_NUM_THREADS"] = "1"  # a second thread would wait actively, which counts as CPU time
    data = DataDir(generate(root / "data", train=ROWS, test=20))
    places = ("--data", data.root, "--cache", root / "cache")
    folds, run = root / "folds.csv", RunDir(root / "tiny")
    recipe = ("--model", "tiny", "--weights", "none", "--epochs", 1, "--fold", 0)
    use("folds", *places, "--out", folds)
    use("train", *places, "--folds", folds, "--run", run.root, *recipe)
    two = [one.root for one in write_predictions(root, data, folds)[:2]]

    def predict_anew() -> float:
        for path in (run.fold(0).oof, run.fold(0).test):
            path.unlink(missing_ok=True)
        return use("predict", *places, "--run", run.root, "--views", 1).busy

    def ensemble() -> float:
        return use("ensemble", *two, "--data", data.root, "--out", root / "submission.csv").busy

    return {
        f"claris predict, tiny network, one fold of {ROWS:,} patches": predict_anew,
        f"claris ensemble, two runs of {ROWS:,} patches": ensemble,
    }


def main() -> None:
    """Compare, print and keep."""
    answers = {
        "claris --help": cpu_seconds(*CLARIS, "--help"),
        "claris train --help": cpu_seconds(*CLARIS, "train", "--help"),
        "claris train, missing flag": cpu_seconds(*CLARIS, "train"),
        "claris trian, unknown command": cpu_seconds(*CLARIS, "trian"),
    }
    libraries = {
        "importing torch, for comparison": cpu_seconds("-c", "import torch"),
        "importing the libraries, for comparison": cpu_seconds("-c", LIBRARIES),
    }
    with tempfile.TemporaryDirectory() as root:
        small = small_commands(Path(root))
        rates = interleave({"Python alone": cpu_seconds("-c", "pass"), **answers, **small, **libraries}, rounds=9)
    slowest = max(max(rates[name]) for name in answers)
    facts = {f"slowest response, of {MOST} s allowed": f"{slowest:.2f} s"}
    publish(Result("startup", "start-up", "s of CPU time", rates, facts))


if __name__ == "__main__":
    main()

"""CPU time from the start of `claris` to its answer, where the answer needs no library.

python -m benchmarks.startup
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

from benchmarks.timing import Result, interleave, publish

LIBRARIES = "import torch, timm, albumentations, sklearn.metrics, pandas"
MOST = 0.3


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


def main() -> None:
    """Compare, print and keep."""
    claris = ("-m", "claris_kaggle")
    answers = {
        "claris --help": cpu_seconds(*claris, "--help"),
        "claris train --help": cpu_seconds(*claris, "train", "--help"),
        "claris train, missing flag": cpu_seconds(*claris, "train"),
        "claris trian, unknown command": cpu_seconds(*claris, "trian"),
    }
    libraries = {"importing the libraries, for comparison": cpu_seconds("-c", LIBRARIES)}
    rates = interleave({"Python alone": cpu_seconds("-c", "pass"), **answers, **libraries}, rounds=9)
    slowest = max(max(rates[name]) for name in answers)
    facts = {f"slowest response, of {MOST} s allowed": f"{slowest:.2f} s"}
    publish(Result("startup", "start-up", "s of CPU time", rates, facts))


if __name__ == "__main__":
    main()

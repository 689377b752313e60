"""Compare two gloo processes with one, and measure the input path with a thousand to a million rows.

python -m benchmarks.scaling
"""

from __future__ import annotations

import csv
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.patches import repeat_patch
from benchmarks.processes import read_megabytes, run_claris
from benchmarks.timing import QUICK, Result, interleave, publish
from claris_kaggle.core.config import TrainConfig
from claris_kaggle.data.batches import EpochBatches
from claris_kaggle.data.synthetic import generate

ROWS = (1_000, 10_000, 100_000, 1_000_000)
STEPS = 30
PATCHES, EPOCHS, MODEL = 480, 2, "densenet121"
if QUICK:
    ROWS, PATCHES, EPOCHS, MODEL = (1_000, 4_000), 240, 1, "tiny"


def make_training_contender(root: Path, nproc: int) -> Callable[[], float]:
    """Return a contender that trains a fold with `nproc` processes on all cores. Its rate is that of the last epoch."""
    cores, calls = os.cpu_count() or 1, iter(range(1000))

    def train_fold() -> float:
        run = root / f"run{nproc}-{next(calls)}"
        run_claris(
            "train", "--data", root / "data", "--cache", root / "cache", "--folds", root / "folds.csv", "--run", run,
            "--fold", 0, "--epochs", EPOCHS, "--model", MODEL, "--weights", "none", "--batch-size", 64,
            "--nproc", nproc, "--threads", cores // nproc,
        )  # fmt: skip
        with (run / "fold0" / "history.csv").open() as file:
            return float(list(csv.DictReader(file))[-1]["images_per_second"])

    return train_fold


def measure_input_path(rows: int) -> tuple[float, float, float, float]:
    """Measure the input path for a pack of that many rows.

    Returns:
        Seconds to set up epoch 1 and epoch 101, images/s, and memory in MB.
    """
    trainset = repeat_patch(rows)
    config = TrainConfig(batch_size=128, color=1.0)
    before = read_megabytes(os.getpid())
    setup = []
    for epoch in (0, 100):
        began = time.perf_counter()
        batches = EpochBatches(trainset, config, epoch=epoch, rank=0, world_size=1)
        setup.append(time.perf_counter() - began)
    steps = np.linspace(0, len(batches) - 1, STEPS).astype(int).tolist()
    batches[0]
    began = time.perf_counter()
    images = sum(len(batches[step].labels) for step in steps)
    rate = images / (time.perf_counter() - began)
    memory = read_megabytes(os.getpid()) - before
    return setup[0], setup[1], rate, memory


def main() -> None:
    """Run the benchmark, print the result and save it."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        measure_input_path(100)  # loads the libraries, so that their memory is not counted
        measured = {rows: measure_input_path(rows) for rows in ROWS}
        generate(root / "data", train=PATCHES, test=20, slides=12)
        run_claris("folds", "--data", root / "data", "--out", root / "folds.csv", "--k", 2, "--cache", root / "cache")
        rates = interleave(
            {
                "one process, two threads": make_training_contender(root, 1),
                "two gloo processes, one thread each": make_training_contender(root, 2),
            },
            rounds=3, warm_up=0,
        )  # fmt: skip
    facts = {
        f"input path, {rows:,} rows": f"setup {first:.3f} s, epoch 101 {later:.3f} s; {rate:,.0f} images/s; "
        f"{memory:.1f} MB"
        for rows, (first, later, rate, memory) in measured.items()
    }
    publish(
        Result(
            "scaling", "training DenseNet-121, global batch 64, equal threads", "images/s", rates, facts,
            ["The rows of the input path repeat one patch, so no disk is read."],
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()

"""Two gloo processes against one with the same threads, and the input path from a thousand to a million rows.

python -m benchmarks.scaling
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.timing import QUICK, Result, interleave, publish
from claris_kaggle.core.config import TrainConfig
from claris_kaggle.data.batches import EpochBatches, TrainSet
from claris_kaggle.data.pack import Pack
from claris_kaggle.data.patches import PATCH_SHAPE
from claris_kaggle.data.synthetic import generate

ROWS = (1_000, 10_000, 100_000, 1_000_000)
STEPS = 30
PATCHES, EPOCHS, MODEL = 480, 2, "densenet121"
if QUICK:
    ROWS, PATCHES, EPOCHS, MODEL = (1_000, 4_000), 240, 1, "tiny"


def claris(*arguments: object) -> None:
    """Run the command."""
    command = [sys.executable, "-m", "claris_kaggle", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"})


def training(root: Path, nproc: int) -> Callable[[], float]:
    """Images a second of the second epoch of a fold, by `nproc` processes on all cores together."""
    cores, calls = os.cpu_count() or 1, iter(range(1000))

    def work() -> float:
        run = root / f"run{nproc}-{next(calls)}"
        claris(
            "train", "--data", root / "data", "--cache", root / "cache", "--folds", root / "folds.csv", "--run", run,
            "--fold", 0, "--epochs", EPOCHS, "--model", MODEL, "--weights", "none", "--batch-size", 64,
            "--nproc", nproc, "--threads", cores // nproc,
        )  # fmt: skip
        with (run / "fold0" / "history.csv").open() as file:
            return float(list(csv.DictReader(file))[-1]["images_per_second"])

    return work


def resident() -> float:
    """The process's own memory in MB, mapped files aside."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(lines["RssAnon"].split()[0]) / 1024


def input_path(folder: Path, rows: int) -> tuple[float, float, float, float]:
    """Set-up of the first and of the hundredth epoch in s, images/s, and memory in MB, for a pack of so many rows."""
    ids = [f"{number:040x}" for number in range(rows)]
    patch = np.random.default_rng(0).integers(0, 256, PATCH_SHAPE, dtype=np.uint8)
    pixels = np.broadcast_to(patch, (rows, *PATCH_SHAPE))  # the same patch over and over: no disk, no memory
    trainset = TrainSet(Pack(ids, pixels, folder), ids, np.arange(rows, dtype=np.int64) % 2)
    config = TrainConfig(batch_size=128, color=1.0)
    before = resident()
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
    memory = resident() - before
    return setup[0], setup[1], rate, memory


def main() -> None:
    """Compare, print and keep."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        input_path(root, 100)  # so that no library is counted
        grown = {rows: input_path(root, rows) for rows in ROWS}
        generate(root / "data", train=PATCHES, test=20, slides=12)
        claris("folds", "--data", root / "data", "--out", root / "folds.csv", "--k", 2, "--cache", root / "cache")
        rates = interleave(
            {"one process, two threads": training(root, 1), "two gloo processes, one thread each": training(root, 2)},
            rounds=3, warm_up=0,
        )  # fmt: skip
    facts = {
        f"input path, {rows:,} rows": f"setup {first:.3f} s, epoch 101 {later:.3f} s; {rate:,.0f} images/s; "
        f"{memory:.1f} MB"
        for rows, (first, later, rate, memory) in grown.items()
    }
    publish(
        Result(
            "scaling", "training DenseNet-121, global batch 64, equal threads", "images/s", rates, facts,
            ["The rows of the input path repeat one patch, so no disk is read."],
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()

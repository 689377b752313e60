"""The host's part of each augmentation, against what two T4s take from four cores.

python -m benchmarks.augmentation
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import cv2

from benchmarks.patches import Bench, bench_patches
from benchmarks.timing import Grid, interleave, publish
from claris_kaggle.core.config import TrainConfig
from claris_kaggle.data.batches import EpochBatches

BATCH, ROUNDS, CORES = 128, 5, 4
# images/s that two T4s train with DenseNet-121, by input size (estimates, see two_t4s).
WANTED = {96: 3000, 192: 750}


def host(bench: Bench, augment: str, *, transform_on_host: bool) -> Callable[[], float]:
    """The batches of an epoch in this process: images a second of CPU time, whatever else the machine does."""
    config = TrainConfig(batch_size=BATCH, color=1.0, augment=augment)
    batches = EpochBatches(bench.trainset, config, epoch=0, rank=0, world_size=1, transform_on_host=transform_on_host)

    def work() -> float:
        began = time.process_time()
        for step in range(len(batches)):
            batches[step]
        return len(bench.trainset.ids) / (time.process_time() - began)

    return work


def main() -> None:
    """Measure, print and keep."""
    cv2.setNumThreads(0)  # as in a loader process
    with bench_patches() as bench:
        rates = interleave(
            {
                f"{augment}, turns on the {'host' if transform_on_host else 'GPU'}": host(
                    bench, augment, transform_on_host=transform_on_host
                )
                for augment in ("none", "light", "strong")
                for transform_on_host in (True, False)
                if augment != "none" or not transform_on_host
            },
            ROUNDS,
        )
        about = bench.about
    rows = []
    for name, values in rates.items():
        rate = statistics.median(values)
        shares = [f"{rate * CORES / wanted:,.1f}" for wanted in WANTED.values()]
        rows.append([name, f"{rate:,.0f}", f"{min(values):,.0f} to {max(values):,.0f}", *shares])
    wants = [f"{CORES} cores / two T4s at {side} px ({wanted:,}/s)" for side, wanted in WANTED.items()]
    publish(
        Grid(
            "augmentation", f"augmentation on the host, {about}",
            ["augmentation", "images/s per core", "range", *wants], rows,
            notes=[
                "Images per second of CPU time of one process. Below 1 the cores are the bottleneck. The host always "
                "augments patches of 96 pixels; the device enlarges them.",
            ],
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()

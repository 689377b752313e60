"""Measure the CPU cost of each augmentation, compared with the images that two T4s train from four cores.

python -m benchmarks.augmentation
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import cv2

from benchmarks.patches import BenchmarkPatches, prepare_patches
from benchmarks.timing import Grid, interleave, measure_cpu_seconds, publish
from claris_kaggle.core.config import TrainConfig
from claris_kaggle.data.batches import EpochBatches

BATCH, ROUNDS, CORES = 128, 5, 4
# images/s that two T4s train with DenseNet-121, by input size (estimates, see two_t4s).
T4_RATES = {96: 3000, 192: 750}


def make_contender(patches: BenchmarkPatches, augment: str, *, transform_on_host: bool) -> Callable[[], float]:
    """Return a contender that makes the batches of an epoch in this process. Its rate is images per CPU second."""
    config = TrainConfig(batch_size=BATCH, color=1.0, augment=augment)
    batches = EpochBatches(patches.trainset, config, epoch=0, rank=0, world_size=1, transform_on_host=transform_on_host)

    def make_batches() -> None:
        for step in range(len(batches)):
            batches[step]

    return lambda: len(patches.trainset.ids) / measure_cpu_seconds(make_batches)[0]


def main() -> None:
    """Run the benchmark, print the result and save it."""
    cv2.setNumThreads(0)  # as in a loader process
    with prepare_patches() as patches:
        rates = interleave(
            {
                f"{augment}, D4 on the {'host' if transform_on_host else 'GPU'}": make_contender(
                    patches, augment, transform_on_host=transform_on_host
                )
                for augment in ("none", "light", "strong")
                for transform_on_host in (True, False)
                if augment != "none" or not transform_on_host
            },
            ROUNDS,
        )
        description = patches.description
    rows = []
    for name, values in rates.items():
        rate = statistics.median(values)
        shares = [f"{rate * CORES / t4_rate:,.1f}" for t4_rate in T4_RATES.values()]
        rows.append([name, f"{rate:,.0f}", f"{min(values):,.0f} to {max(values):,.0f}", *shares])
    ratios = [f"{CORES} cores / two T4s at {side} px ({rate:,}/s)" for side, rate in T4_RATES.items()]
    publish(
        Grid(
            "augmentation", f"augmentation on the host, {description}",
            ["augmentation", "images/s per core", "range", *ratios], rows,
            notes=[
                "Images per second of CPU time of one process. Below 1 the cores are the bottleneck. The host always "
                "augments patches of 96 pixels; the device enlarges them.",
            ],
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()

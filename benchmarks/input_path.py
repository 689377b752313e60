"""Measure the data loader alone: patches from a pack, compared with files that are decoded in every epoch.

python -m benchmarks.input_path
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable

import torch

from benchmarks import reference
from benchmarks.patches import BenchmarkPatches, prepare_patches, repeat_patch
from benchmarks.timing import QUICK, THREADS, Result, interleave, publish, rate_of
from claris_kaggle.core.config import TrainConfig
from claris_kaggle.data.augment import to_input
from claris_kaggle.data.batches import EpochBatches
from claris_kaggle.runtime.loading import load_in_order

BATCH, PASSES = 128, 4
# As on Kaggle: images/s that two T4s train, and loader processes of the process of each GPU.
T4_RATE, LOADERS = 2000, 2
ROWS = 4_096 if QUICK else 100_000


def make_loader_contender(
    patches: BenchmarkPatches, *, color: float, transform_on_host: bool, normalise: bool
) -> Callable[[], float]:
    """Return a contender that runs the loader of claris in one process, with or without normalisation."""

    def load_epochs() -> None:
        for epoch in range(PASSES):
            batches = EpochBatches(
                patches.trainset, TrainConfig(batch_size=BATCH, color=color), epoch=epoch, rank=0, world_size=1,
                transform_on_host=transform_on_host,
            )  # fmt: skip
            for batch in load_in_order(batches, range(len(batches)), 0, pin=False):
                if normalise:
                    to_input(batch.images, "imagenet", batch.colors if color else None)

    return rate_of(PASSES * len(patches.trainset.ids), load_epochs)


def make_gather_contender(patches: BenchmarkPatches) -> Callable[[], float]:
    """Return a contender that makes the host batches for a GPU, without the loader."""
    config = TrainConfig(batch_size=BATCH, color=1.0)
    batches = EpochBatches(patches.trainset, config, epoch=0, rank=0, world_size=1, transform_on_host=False)

    def make_batches() -> None:
        for _ in range(4 * PASSES):
            for step in range(len(batches)):
                batches[step]

    return rate_of(4 * PASSES * len(patches.trainset.ids), make_batches)


def measure_loader_cost(workers: int) -> float:
    """Return the CPU seconds per image of the loader for a GPU, in this process and its loader processes."""
    trainset = repeat_patch(ROWS)
    before = sum(os.times()[:4])  # includes child processes that have ended
    config = TrainConfig(batch_size=BATCH, color=1.0)
    batches = EpochBatches(trainset, config, epoch=0, rank=0, world_size=1, transform_on_host=False)
    for _ in load_in_order(batches, range(len(batches)), workers, pin=False):
        pass
    return (sum(os.times()[:4]) - before) / ROWS


def main() -> None:
    """Run the benchmark, print the result and save it."""
    cores = os.cpu_count() or 1
    with prepare_patches() as patches:
        labels = patches.trainset.labels.tolist()
        files = reference.Patches(
            patches.data.patches("train"), patches.trainset.ids, labels, reference.train_transform()
        )
        batches = reference.create_loader(files, BATCH, cores, shuffle=True)

        def run_reference() -> None:
            for _ in batches:
                pass

        rates = interleave(
            {
                "reference: Pillow and torchvision": rate_of(len(files), run_reference),
                "packed, D4, normalised": make_loader_contender(
                    patches, color=0.0, transform_on_host=True, normalise=True
                ),
                "packed, D4, colour, normalised": make_loader_contender(
                    patches, color=1.0, transform_on_host=True, normalise=True
                ),
                "packed, D4 in one process, as for a CPU": make_loader_contender(
                    patches, color=1.0, transform_on_host=True, normalise=False
                ),
                "host's part for a GPU: one gather, random values of D4 and colour": make_gather_contender(patches),
            },
            rounds=5,
        )
        host_rate = statistics.median(rates["packed, D4 in one process, as for a CPU"])
        gather_rate = statistics.median(rates["host's part for a GPU: one gather, random values of D4 and colour"])
        cost = statistics.median(measure_loader_cost(LOADERS) for _ in range(3))
        result = Result(
            "input_path", f"input path, {patches.description}, {cores} cores", "images/s", rates,
            {
                f"two T4s at {T4_RATE:,} images/s": f"{T4_RATE * cost:.0%} of one of these cores for the loader with "
                f"{LOADERS} processes and D4 on the GPU (gather alone {T4_RATE / gather_rate:.2%}, D4 on the host "
                f"{T4_RATE / host_rate:.1%}). Half of four vCPUs is 200 %, so they may be "
                f"{2 / (T4_RATE * cost):.0f} times as slow as these cores",
            },
            ["The reference decodes in as many worker processes as there are cores; claris uses one process, with "
             "normalisation in torch's threads. Colour and normalisation are one batched affine map."],
        )  # fmt: skip
        publish(result)


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    main()

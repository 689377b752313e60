"""Loader alone, like for like on the same cores: files decoded each time against a pack.

python -m benchmarks.input_path
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks import reference
from benchmarks.patches import Bench, bench_patches
from benchmarks.timing import QUICK, THREADS, Result, interleave, publish, rate_of
from claris_kaggle.core.config import TrainConfig
from claris_kaggle.data.augment import to_input
from claris_kaggle.data.batches import EpochBatches, TrainSet
from claris_kaggle.data.pack import Pack
from claris_kaggle.data.patches import PATCH_SHAPE
from claris_kaggle.runtime.loading import load_in_order

BATCH, PASSES = 128, 4
# As on Kaggle: what two T4s take at full speed, and loader processes of each card's process.
WANTED, LOADERS = 2000, 2
ROWS = 4_096 if QUICK else 100_000


def ours(bench: Bench, *, color: float, transform_on_host: bool, normalise: bool, workers: int) -> Callable[[], float]:
    """Our loader, with what follows it on the CPU."""

    def work() -> None:
        for epoch in range(PASSES):
            batches = EpochBatches(
                bench.trainset, TrainConfig(batch_size=BATCH, color=color), epoch=epoch, rank=0, world_size=1,
                transform_on_host=transform_on_host,
            )  # fmt: skip
            for batch in load_in_order(batches, range(len(batches)), workers, pin=False):
                if normalise:
                    to_input(batch.images, "imagenet", batch.colors if color else None)

    return rate_of(PASSES * len(bench.trainset.ids), work)


def gather(bench: Bench) -> Callable[[], float]:
    """The batches that the host makes for a GPU, without a loader around them."""
    batches = EpochBatches(
        bench.trainset, TrainConfig(batch_size=BATCH, color=1.0), epoch=0, rank=0, world_size=1, transform_on_host=False
    )

    def work() -> None:
        for _ in range(4 * PASSES):
            for step in range(len(batches)):
                batches[step]

    return rate_of(4 * PASSES * len(bench.trainset.ids), work)


def loader_cost(workers: int) -> float:
    """CPU seconds an image of the loader as it runs beside a GPU, its worker processes and this one together."""
    ids = [f"{number:040x}" for number in range(ROWS)]
    patch = np.random.default_rng(0).integers(0, 256, PATCH_SHAPE, dtype=np.uint8)
    pack = Pack(ids, np.broadcast_to(patch, (ROWS, *PATCH_SHAPE)), Path())
    trainset = TrainSet(pack, ids, np.arange(ROWS, dtype=np.int64) % 2)
    began = sum(os.times()[:4])  # of this process and of children that have ended
    config = TrainConfig(batch_size=BATCH, color=1.0)
    batches = EpochBatches(trainset, config, epoch=0, rank=0, world_size=1, transform_on_host=False)
    for _ in load_in_order(batches, range(len(batches)), workers, pin=False):
        pass
    return (sum(os.times()[:4]) - began) / ROWS


def main() -> None:
    """Compare, print and keep."""
    cores = os.cpu_count() or 1
    with bench_patches() as bench:
        labels = bench.trainset.labels.tolist()
        patches = reference.Patches(
            bench.data.patches("train"), bench.trainset.ids, labels, reference.train_transform()
        )
        batches = reference.loader(patches, BATCH, cores, shuffle=True)

        def run_reference() -> None:
            for _ in batches:
                pass

        rates = interleave(
            {
                "reference: Pillow and torchvision": rate_of(len(patches), run_reference),
                "packed, D4, normalised": ours(bench, color=0.0, transform_on_host=True, normalise=True, workers=0),
                "packed, D4, colour, normalised": ours(
                    bench, color=1.0, transform_on_host=True, normalise=True, workers=0
                ),
                "packed, D4 in one process, as for a CPU": ours(
                    bench, color=1.0, transform_on_host=True, normalise=False, workers=0
                ),
                "host's part for a GPU: one gather, random values of D4 and colour": gather(bench),
            },
            rounds=5,
        )
        here = statistics.median(rates["packed, D4 in one process, as for a CPU"])
        gpu = statistics.median(rates["host's part for a GPU: one gather, random values of D4 and colour"])
        cost = statistics.median(loader_cost(LOADERS) for _ in range(3))
        result = Result(
            "input_path", f"input path, {bench.about}, {cores} cores", "images/s", rates,
            {
                f"two T4s at {WANTED:,} images/s": f"{WANTED * cost:.0%} of one of these cores for the whole loader, "
                f"{LOADERS} processes, turns on the GPU (gather alone {WANTED / gpu:.2%}, turns on the host "
                f"{WANTED / here:.1%}); half of four vCPUs is 200 %, so they may be {2 / (WANTED * cost):.0f} times as "
                "slow as these cores",
            },
            ["The reference decodes in as many worker processes as there are cores; claris uses one process, with "
             "normalisation in torch's threads. Colour and normalisation are one batched affine map."],
        )  # fmt: skip
        publish(result)


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    main()

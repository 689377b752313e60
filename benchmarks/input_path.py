"""Loader alone, like for like on the same cores: files decoded each time against a pack.

python -m benchmarks.input_path
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable

import torch

from benchmarks import reference
from benchmarks.patches import Bench, bench_patches
from benchmarks.timing import Result, interleave, publish, rate_of
from claris_kaggle.config import TrainConfig
from claris_kaggle.dataset import EpochBatches, load
from claris_kaggle.transforms import to_input

BATCH, PASSES = 128, 4


def ours(bench: Bench, *, color: float, turn_here: bool, normalise: bool, workers: int) -> Callable[[], float]:
    """Our loader, with what follows it on the CPU."""

    def work() -> None:
        for epoch in range(PASSES):
            batches = EpochBatches(
                bench.trainset, TrainConfig(batch_size=BATCH, color=color), epoch=epoch, rank=0, world_size=1,
                turn_here=turn_here,
            )  # fmt: skip
            for batch in load(batches, range(len(batches)), workers, pin=False):
                if normalise:
                    to_input(batch.images, "imagenet", batch.colors if color else None)

    return rate_of(PASSES * len(bench.trainset.ids), work)


def gather(bench: Bench) -> Callable[[], float]:
    """The batches that the host makes for a GPU, without a loader around them."""
    batches = EpochBatches(
        bench.trainset, TrainConfig(batch_size=BATCH, color=1.0), epoch=0, rank=0, world_size=1, turn_here=False
    )

    def work() -> None:
        for _ in range(4 * PASSES):
            for step in range(len(batches)):
                batches[step]

    return rate_of(4 * PASSES * len(bench.trainset.ids), work)


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
                "packed, D4, normalised": ours(bench, color=0.0, turn_here=True, normalise=True, workers=0),
                "packed, D4, colour, normalised": ours(bench, color=1.0, turn_here=True, normalise=True, workers=0),
                "packed, D4 in one process, as for a CPU": ours(
                    bench, color=1.0, turn_here=True, normalise=False, workers=0
                ),
                "host's part for a GPU: one gather, draws of turns and colour": gather(bench),
            },
            rounds=5,
        )
        here = statistics.median(rates["packed, D4 in one process, as for a CPU"])
        gpu = statistics.median(rates["host's part for a GPU: one gather, draws of turns and colour"])
        result = Result(
            "input_path", f"input path, {bench.about}, {cores} cores", "images/s", rates,
            {
                "two T4s at 2,000 images/s": f"{2000 / here:.1%} of one of these cores with the turns on the host, "
                f"{2000 / gpu:.2%} with the turns on the GPU; half of four vCPUs would be 200 %",
            },
            ["The reference decodes in as many worker processes as there are cores; ours works in one process, its "
             "normalisation in torch's threads. Colour and normalisation are one batched affine map."],
        )  # fmt: skip
        publish(result)


if __name__ == "__main__":
    torch.set_num_threads(os.cpu_count() or 1)
    main()

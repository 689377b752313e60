"""Whole epochs at 96 px: patches streamed from files or a pack, or resident on the card.

python -m benchmarks.gpu.loading [--quick] [--out DIR]
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms

from benchmarks import reference
from benchmarks.gpu import peers
from benchmarks.gpu.card import (
    CARD,
    CUDA,
    DEVICE,
    LR,
    WORLD,
    Contender,
    begin_each,
    config_of,
    noise_pack,
    rate_of_steps,
)
from benchmarks.gpu.graphs import capture_step
from benchmarks.timing import QUICK, Result, interleave, publish
from claris_kaggle.data.augment import _color_draws, _stain_draws, _symmetry_numbers
from claris_kaggle.data.batches import Batch, EpochBatches, TrainSet
from claris_kaggle.data.pack import Pack
from claris_kaggle.models.factory import create_model
from claris_kaggle.training.learner import _CHECK_INTERVAL, _Learner, _train_epoch, _train_step
from claris_kaggle.training.throughput import _synchronize, _time_loader

BATCH, LARGE, ROWS, FILES, SKIPPED = (4, 8, 32, 16, 1) if QUICK else (128, 512, 20_480, 2_560, 8)
REPEATS = 3  # of the files in an epoch of the others
CORES = os.cpu_count() or 1
OUR_WORKERS, THEIR_WORKERS = (0, 0) if QUICK else (min(4, CORES), min(12, CORES))


def write_files(pack: Pack, folder: Path) -> None:
    """Write the first patches of the pack as files of the competition."""
    for name, pixels in zip(pack.ids[:FILES], pack.pixels, strict=False):
        Image.fromarray(np.asarray(pixels)).save(folder / f"{name}.tif")


def file_loader(pack: Pack, folder: Path, transform: Any) -> DataLoader[Any]:
    """Return a loader that decodes the files, with complete batches only."""
    ids = pack.ids[:FILES] * REPEATS
    patches = reference.Patches(folder, ids, [number % 2 for number in range(len(ids))], transform)
    ahead = 1 if THEIR_WORKERS else None  # what was loaded before the clock began must not count for much
    return DataLoader(
        patches, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=THEIR_WORKERS, pin_memory=CUDA,
        prefetch_factor=ahead,
    )  # fmt: skip


def bytes_transform() -> Any:
    """Return the reference's geometry without normalisation, which timm's loader does on the GPU."""
    return transforms.Compose([*reference.train_transform().transforms[:-2], transforms.PILToTensor()])


def normalised(loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the loader's batches, copied to the device and normalised there."""
    mean, deviation = (
        torch.tensor(values, device=DEVICE)[:, None, None] * 255 for values in (reference.MEAN, reference.DEVIATION)
    )
    for images, labels in loader:
        yield (images.to(DEVICE, non_blocking=True).float() - mean) / deviation, labels.to(DEVICE, non_blocking=True)


def their_loader_alone(loader: DataLoader[Any]) -> Callable[[], float]:
    """Return a function that measures images per second of the loader, without its first batch."""

    def measured() -> float:
        began, images = 0.0, 0
        for number, (_, labels) in enumerate(loader):
            began, images = (time.perf_counter(), 0) if number == 0 else (began, images + len(labels))
        return images / (time.perf_counter() - began)

    return measured


def our_batches(pack: Pack, batch_size: int) -> EpochBatches:
    """Return the batches of an epoch over the pack."""
    trainset = TrainSet(pack, pack.ids, np.arange(ROWS, dtype=np.int64) % 2)
    return EpochBatches(trainset, config_of("fp16", batch_size), epoch=0, rank=0, world_size=1, transform_on_host=False)


def new_learner(batch_size: int) -> _Learner:
    """Return a new learner on the device."""
    config = config_of("fp16", batch_size)
    return _Learner(config, WORLD, create_model(config.model))


def streamed(pack: Pack, batch_size: int) -> Callable[[], float]:
    """Return a function that measures an epoch with loader and transfers, without its first steps."""
    learner, batches = new_learner(batch_size), our_batches(pack, batch_size)

    def measured() -> float:
        torch.backends.cudnn.benchmark = True
        learner.step = 0
        done: list[tuple[float, int]] = []

        def between(rows: int) -> str:
            done.append((time.perf_counter(), rows))
            return ""

        _train_epoch(learner, batches, OUR_WORKERS, between)
        _synchronize(DEVICE)
        first = min(
            _CHECK_INTERVAL[DEVICE.type], len(done) // 2
        )  # the device was waited for in the step before this one
        return sum(rows for _, rows in done[first + 1 :]) / (time.perf_counter() - done[first][0])

    return measured


def resident(pack: Pack, batch_size: int, *, recorded: bool = False) -> Callable[[], float]:
    """Return a function that measures steps on patches in GPU memory, eager or as a CUDA graph."""
    learner, batches = new_learner(batch_size), our_batches(pack, batch_size)
    words, config = batches.words, learner.config
    parts = [
        torch.from_numpy(np.asarray(part)).to(DEVICE)
        for part in (
            pack.pixels, _symmetry_numbers(words), batches.trainset.labels, _color_draws(words, config.color),
            _stain_draws(words, config.stain),
        )
    ]  # fmt: skip
    order = torch.from_numpy(batches.order).to(DEVICE)

    def batch_at(begin: int, end: int) -> Batch:
        return Batch(*parts, float(end - begin)).map(lambda part: part[order[begin:end]])

    def eager(batch: Batch) -> None:
        _train_step(learner, batch, LR)

    take = capture_step(learner, batch_at(0, batch_size), LR) if recorded else eager

    def loop() -> Iterator[int]:
        for begin, end in batches.steps:
            take(batch_at(begin, end))
            yield end - begin

    return lambda: rate_of_steps(loop, SKIPPED)


def makers(pack: Pack, folder: Path) -> dict[str, Callable[[], Contender]]:
    """Return the contenders: complete epochs, and both loaders alone."""
    plain = file_loader(pack, folder, reference.train_transform())
    raw = file_loader(pack, folder, bytes_transform())
    found: dict[str, Callable[[], Contender]] = {
        "reference: Pillow and torchvision, float32": lambda: epoch_of(peers.reference_loop(lambda: plain)),
        "timm's loop, bytes to the card, fp16": lambda: epoch_of(peers.timm_loop(lambda: normalised(raw))),
    }
    if peers.has_lightning():
        found["Lightning over the reference's loader, 16-mixed"] = lambda: peers.lightning_rate(lambda: plain, SKIPPED)
    return {
        **found,
        "ours, streamed from the pack": lambda: streamed(pack, BATCH),
        "ours, patches on the card": lambda: resident(pack, BATCH),
        "ours, patches on the card, CUDA graph": lambda: resident(pack, BATCH, recorded=True),
        f"ours, streamed from the pack, batch {LARGE}": lambda: streamed(pack, LARGE),
        f"ours, patches on the card, batch {LARGE}": lambda: resident(pack, LARGE),
        "the reference's loader alone": lambda: their_loader_alone(plain),
        "our loader alone": lambda: our_loader_alone(pack),
    }


def epoch_of(loop: Callable[[], Iterator[int]]) -> Contender:
    """Return a function that measures images per second of the loop, without its first steps."""
    return lambda: rate_of_steps(loop, SKIPPED)


def our_loader_alone(pack: Pack) -> Contender:
    """Return a function that measures images per second of our loader, without its first batch."""
    batches = our_batches(pack, BATCH)
    return lambda: _time_loader(batches, list(range(len(batches))), OUR_WORKERS, pin=CUDA)[0]


def main() -> None:
    """Measure the contenders, print the result and write it."""
    pack = noise_pack(ROWS)
    facts: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_files(pack, Path(folder))
        found = begin_each(makers(pack, Path(folder)), facts)
        rates = interleave(found, rounds=2, warm_up=0)
    notes = [
        f"{ROWS:,} patches of noise, files and pack in the system's cache; {THEIR_WORKERS} loader processes for the "
        f"others, {OUR_WORKERS} for ours; the first steps aside."
    ]
    title = f"an epoch of DenseNet-121 with its loader, batch {BATCH}, {CARD}"
    publish(Result("gpu_loading", title, "images/s", rates, facts, notes))


if __name__ == "__main__":
    main()

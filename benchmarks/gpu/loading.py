"""Measure complete epochs at 96 px with patches from files, from a pack, or in GPU memory.

python -m benchmarks.gpu.loading [--quick] [--out DIR] [--seconds 300]
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
from benchmarks.gpu.device import (
    CUDA,
    DEVICE,
    END,
    GPU_NAME,
    LR,
    WORLD,
    Contender,
    create_config,
    create_contenders,
    create_noise_pack,
    measure_step_rate,
)
from benchmarks.gpu.graphs import capture_step
from benchmarks.timing import QUICK, Result, interleave, publish
from claris_kaggle.data.augment import _color_draws, _stain_draws, _symmetry_numbers
from claris_kaggle.data.batches import Batch, EpochBatches, TrainSet
from claris_kaggle.data.pack import Pack
from claris_kaggle.data.patches import PATCH_BYTES
from claris_kaggle.models.factory import create_model
from claris_kaggle.runtime.loading import limit_workers
from claris_kaggle.training.learner import _CHECK_INTERVAL, _Learner, _train_epoch, _train_step
from claris_kaggle.training.throughput import _synchronize, _time_loader

BATCH, LARGE, ROWS, FILES, SKIPPED = (4, 8, 32, 16, 1) if QUICK else (128, 512, 20_480, 2_560, 8)
REPEATS = 2  # passes over the files in an epoch of the other libraries
CORES = 0 if QUICK else os.cpu_count() or 1
# Batches that do not fit into the machine's shared memory would end the loader processes.
CLARIS_WORKERS = limit_workers(min(4, CORES), LARGE * PATCH_BYTES, 1)
PEER_WORKERS = limit_workers(min(12, CORES), 4 * BATCH * PATCH_BYTES, 1)


def write_files(pack: Pack, folder: Path) -> None:
    """Write the first patches of the pack as files of the competition."""
    for name, pixels in zip(pack.ids[:FILES], pack.pixels, strict=False):
        Image.fromarray(np.asarray(pixels)).save(folder / f"{name}.tif")


def create_file_loader(pack: Pack, folder: Path, transform: Any) -> DataLoader[Any]:
    """Return a loader that decodes the files. It drops an incomplete last batch."""
    ids = pack.ids[:FILES] * REPEATS
    patches = reference.Patches(folder, ids, [number % 2 for number in range(len(ids))], transform)
    # A low value, because batches that are loaded before the measurement starts distort the rate.
    prefetch_factor = 1 if PEER_WORKERS else None
    return DataLoader(
        patches, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=PEER_WORKERS, pin_memory=CUDA,
        prefetch_factor=prefetch_factor,
    )  # fmt: skip


def bytes_transform() -> Any:
    """Return the reference's transform without normalisation, which timm's loader does on the GPU."""
    return transforms.Compose([*reference.train_transform().transforms[:-2], transforms.PILToTensor()])


def normalise_batches(loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the loader's batches, copied to the device and normalised there."""
    mean, deviation = (
        torch.tensor(values, device=DEVICE)[:, None, None] * 255 for values in (reference.MEAN, reference.DEVIATION)
    )
    for images, labels in loader:
        yield (images.to(DEVICE, non_blocking=True).float() - mean) / deviation, labels.to(DEVICE, non_blocking=True)


def time_file_loader(loader: DataLoader[Any]) -> Contender:
    """Return a contender that only loads the batches. The first batch is not measured."""

    def measure_rate() -> float:
        began, images = 0.0, 0
        for step, (_, labels) in enumerate(loader):
            began, images = (time.perf_counter(), 0) if step == 0 else (began, images + len(labels))
        return images / (time.perf_counter() - began)

    return measure_rate


def create_batches(pack: Pack, batch_size: int) -> EpochBatches:
    """Return the batches of an epoch over the pack."""
    trainset = TrainSet(pack, pack.ids, np.arange(ROWS, dtype=np.int64) % 2)
    return EpochBatches(
        trainset, create_config("fp16", batch_size), epoch=0, rank=0, world_size=1, transform_on_host=False
    )


def new_learner(batch_size: int) -> _Learner:
    """Return a new learner on the device."""
    config = create_config("fp16", batch_size)
    return _Learner(config, WORLD, create_model(config.model))


def train_from_pack(pack: Pack, batch_size: int) -> Contender:
    """Return a contender that trains an epoch with loader and transfers. The first steps are not measured."""
    learner, batches = new_learner(batch_size), create_batches(pack, batch_size)

    def measure_rate() -> float:
        torch.backends.cudnn.benchmark = True
        learner.step = 0
        done: list[tuple[float, int]] = []

        def after_step(rows: int) -> str:
            done.append((time.perf_counter(), rows))
            return ""

        _train_epoch(learner, batches, CLARIS_WORKERS, after_step)
        _synchronize(DEVICE)
        # The learner synchronised with the device in the step before this one.
        first = min(_CHECK_INTERVAL[DEVICE.type], len(done) // 2)
        return sum(rows for _, rows in done[first + 1 :]) / (time.perf_counter() - done[first][0])

    return measure_rate


def train_from_gpu_memory(pack: Pack, batch_size: int, *, recorded: bool = False) -> Contender:
    """Return a contender that trains on patches in GPU memory, eagerly or with a CUDA graph."""
    learner, batches = new_learner(batch_size), create_batches(pack, batch_size)
    words, config = batches.words, learner.config
    parts = [
        torch.from_numpy(np.asarray(part)).to(DEVICE)
        for part in (
            pack.pixels, _symmetry_numbers(words), batches.trainset.labels, _color_draws(words, config.color),
            _stain_draws(words, config.stain),
        )
    ]  # fmt: skip
    order = torch.from_numpy(batches.order).to(DEVICE)

    def gather_batch(begin: int, end: int) -> Batch:
        return Batch(*parts, float(end - begin)).map(lambda part: part[order[begin:end]])

    def train_eagerly(batch: Batch) -> None:
        _train_step(learner, batch, LR)

    train_step = capture_step(learner, gather_batch(0, batch_size), LR) if recorded else train_eagerly

    def loop() -> Iterator[int]:
        for begin, end in batches.steps:
            train_step(gather_batch(begin, end))
            yield end - begin

    return lambda: measure_step_rate(loop, SKIPPED)


def contender_factories(pack: Pack, folder: Path) -> dict[str, Callable[[], Contender]]:
    """Return functions that create the contenders: complete epochs, and both loaders alone."""
    float_loader = create_file_loader(pack, folder, reference.train_transform())
    byte_loader = create_file_loader(pack, folder, bytes_transform())
    factories: dict[str, Callable[[], Contender]] = {
        "reference: Pillow and torchvision, float32": lambda: train_epoch(peers.reference_loop(lambda: float_loader)),
        "timm's loop, bytes to the GPU, fp16": lambda: train_epoch(
            peers.timm_loop(lambda: normalise_batches(byte_loader))
        ),
    }
    if peers.has_lightning():
        factories["Lightning with the reference's loader, 16-mixed"] = lambda: peers.lightning_contender(
            lambda: float_loader, SKIPPED
        )
    return {
        **factories,
        "claris, patches from the pack": lambda: train_from_pack(pack, BATCH),
        "claris, patches in GPU memory": lambda: train_from_gpu_memory(pack, BATCH),
        "claris, patches in GPU memory, CUDA graph": lambda: train_from_gpu_memory(pack, BATCH, recorded=True),
        f"claris, patches from the pack, batch {LARGE}": lambda: train_from_pack(pack, LARGE),
        f"claris, patches in GPU memory, batch {LARGE}": lambda: train_from_gpu_memory(pack, LARGE),
        "loader of the reference alone": lambda: time_file_loader(float_loader),
        "loader of claris alone": lambda: time_claris_loader(pack),
    }


def train_epoch(loop: Callable[[], Iterator[int]]) -> Contender:
    """Return a contender that runs the training loop for an epoch. The first steps are not measured."""
    return lambda: measure_step_rate(loop, SKIPPED)


def time_claris_loader(pack: Pack) -> Contender:
    """Return a contender that only loads the batches of claris. The first batch is not measured."""
    batches = create_batches(pack, BATCH)
    return lambda: _time_loader(batches, list(range(len(batches))), CLARIS_WORKERS, pin=CUDA)[0]


def main() -> None:
    """Run the benchmark. Print and save the rates of the first epochs, then those of the following rounds."""
    pack = create_noise_pack(ROWS)
    facts: dict[str, str] = {}
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_files(pack, Path(folder))
        contenders = create_contenders(contender_factories(pack, Path(folder)), facts, rates)
        publish_rates(rates, facts)
        publish_rates(interleave(contenders, rounds=2, warm_up=0, end=END), facts)


def publish_rates(rates: dict[str, list[float]], facts: dict[str, str]) -> None:
    """Print and save the rates."""
    notes = [
        f"{ROWS:,} patches of noise. Files and pack are in the system's cache. The other libraries have {PEER_WORKERS} "
        f"loader processes, claris has {CLARIS_WORKERS}. The first steps are not measured."
    ]
    title = f"an epoch of DenseNet-121 with its loader, batch {BATCH}, {GPU_NAME}"
    publish(Result("gpu_loading", title, "images/s", rates, facts, notes))


if __name__ == "__main__":
    main()

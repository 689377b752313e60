"""What holds training up: images a second of the loader alone and of the steps alone.

The slower of the two is the limit; both together tell cold disks and slow CPUs from a slow card.
"""

from __future__ import annotations

import itertools
import time

import torch

from claris_kaggle.core.console import log_info
from claris_kaggle.data.batches import Batch, EpochBatches
from claris_kaggle.runtime.distributed import any_rank
from claris_kaggle.runtime.loading import load_in_order
from claris_kaggle.training.learner import _Learner, _train_step

# Steps to warm up, and to time; a CPU takes seconds for each.
_STEPS = {"cuda": (5, 20), "cpu": (1, 2)}
_LOADED = 40


def _log_throughput(learner: _Learner, batches: EpochBatches, workers: int) -> None:
    """Measure both and say them, all ranks together.

    Args:
        learner: is trained for a few steps; it must not be used afterwards.
        batches: of this rank.
        workers: loader processes a rank.
    """
    world = learner.world
    some = list(range(min(_LOADED, len(batches))))
    loader_rate, kept = _time_loader(batches, some, workers, pin=world.device.type == "cuda")
    any_rank(world, 0)
    step_rate = _time_steps(learner, kept)
    log_info(
        f"rates of {world.world_size} processes together: loader alone {loader_rate * world.world_size:,.0f} images/s, "
        f"steps alone {step_rate * world.world_size:,.0f} images/s"
    )


def _time_loader(batches: EpochBatches, items: list[int], workers: int, pin: bool) -> tuple[float, list[Batch]]:
    """Images a second of the loader, its first batch aside, and the last batches."""
    kept: list[Batch] = []
    images, began = 0, time.perf_counter()
    for number, batch in enumerate(load_in_order(batches, items, workers, pin=pin)):
        if number == 0:
            began = time.perf_counter()  # worker processes have started by now
        else:
            images += len(batch.labels)
        kept = [*kept[-3:], batch]
    return images / max(time.perf_counter() - began, 1e-9), kept


def _time_steps(learner: _Learner, batches: list[Batch]) -> float:
    """Images a second of training steps on batches that are there already."""
    device = learner.world.device
    warm_up, timed = _STEPS.get(device.type, (1, 2))
    warm_up = max(warm_up, len(batches)) if learner.compiled else warm_up  # a batch of another size compiles anew
    images, began = 0, 0.0
    for number, batch in enumerate(itertools.islice(itertools.cycle(batches), warm_up + timed)):
        if number == warm_up:
            _wait_for(device)
            began = time.perf_counter()
        _train_step(learner, batch, learner.config.lr)
        images += len(batch.labels) if number >= warm_up else 0
    _wait_for(device)
    return images / max(time.perf_counter() - began, 1e-9)


def _wait_for(device: torch.device) -> None:
    """Return when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""Measure images/s of the data loader alone, and of training steps alone with and without `torch.compile`.

The slower of loader and steps limits training. The comparison shows if the disk and the CPU are the bottleneck, or the
GPU.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import torch

from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import first_line
from claris_kaggle.data.batches import Batch, EpochBatches
from claris_kaggle.runtime.distributed import max_over_ranks
from claris_kaggle.runtime.loading import load_in_order
from claris_kaggle.training.learner import _is_compiler_error, _Learner, _train_step

# (warm-up steps, timed steps). A step takes seconds on a CPU.
_TIMED_STEPS = {"cuda": (5, 20), "cpu": (1, 2)}
_TIMED_BATCHES = 40


def _log_throughput(learner: _Learner, batches: EpochBatches, workers: int) -> None:
    """Measure and log the throughput of the data loader and of training steps, on all ranks at the same time.

    Args:
        learner: is trained for a few steps. Do not use it afterwards.
        batches: the steps of an epoch, for this rank.
        workers: worker processes per rank.
    """
    world = learner.world
    items = list(range(min(_TIMED_BATCHES, len(batches))))
    loader_rate, last_batches = _time_loader(batches, items, workers, pin=world.device.type == "cuda")
    max_over_ranks(world, 0)
    step_rate = _time_steps(learner, last_batches)
    log_info(
        f"throughput of {world.world_size} processes in total: "
        f"data loading only {loader_rate * world.world_size:,.0f} images/s, "
        f"training steps only {step_rate * world.world_size:,.0f} images/s"
    )


def _time_loader(batches: EpochBatches, items: list[int], workers: int, pin: bool) -> tuple[float, list[Batch]]:
    """Return the images/s of the loader without its first batch, and the last batches (at most four)."""
    last_batches: list[Batch] = []
    images, start = 0, time.perf_counter()
    for number, batch in enumerate(load_in_order(batches, items, workers, pin=pin)):
        if number == 0:
            start = time.perf_counter()  # the worker processes have started
        else:
            images += len(batch.labels)
        last_batches = [*last_batches[-3:], batch]
    return images / max(time.perf_counter() - start, 1e-9), last_batches


def _time_steps(learner: _Learner, batches: list[Batch]) -> float:
    """Return the images/s of training steps on batches that are already loaded."""
    device = learner.world.device
    warm_up, timed = _TIMED_STEPS.get(device.type, (1, 2))
    warm_up = max(warm_up, len(batches)) if learner.compiled else warm_up  # each batch size is compiled once
    images, start = 0, 0.0
    for number, batch in enumerate(itertools.islice(itertools.cycle(batches), warm_up + timed)):
        if number == warm_up:
            _synchronize(device)
            start = time.perf_counter()
        _train_step(learner, batch, learner.config.lr)
        images += len(batch.labels) if number >= warm_up else 0
    _synchronize(device)
    return images / max(time.perf_counter() - start, 1e-9)


def _compiling_pays(
    create: Callable[[bool], _Learner], make_batches: Callable[[_Learner], EpochBatches], images: int
) -> bool:
    """Measure training steps with and without `torch.compile`, and return True if compilation saves time in this run.

    Args:
        create: returns a new learner, compiled if its argument is True. It is trained for a few steps.
        make_batches: returns the steps of an epoch of a learner, for this rank.
        images: number of images that this rank still has to train in the run.
    """
    loaded: list[Batch] = []
    rates, began = [], 0.0
    for compiled in (False, True):
        learner = create(compiled)
        loaded = loaded or _load_one_of_each_size(make_batches(learner))
        began = time.perf_counter()
        try:
            rates.append(_time_steps(learner, loaded))
        except RuntimeError as error:
            if not _is_compiler_error(error):
                raise
            log_info(f"training without torch.compile, which failed ({first_line(error)})")
            return False
        del learner
    seconds = time.perf_counter() - began  # of the compilation, and of a few steps
    pays = seconds + images / rates[1] < images / rates[0]
    log_info(
        f"torch.compile: {rates[1]:,.0f} images/s instead of {rates[0]:,.0f} per process, after {seconds:.0f} s: "
        + ("used" if pays else "not used, as it saves no time in this run")
    )
    return pays


def _load_one_of_each_size(batches: EpochBatches) -> list[Batch]:
    """Return one batch of each size, of which there are at most two."""
    last_step_of_size = {end - begin: step for step, (begin, end) in enumerate(batches.steps)}
    return [batches[step] for step in last_step_of_size.values()]


def _synchronize(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

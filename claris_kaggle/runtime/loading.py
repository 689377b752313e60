"""Load batches and blocks in worker processes and copy them to the device ahead of time."""

from __future__ import annotations

import functools
import shutil
import signal
from collections.abc import Iterable, Iterator
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from claris_kaggle.core.errors import TrainingError
from claris_kaggle.core.platforms import SHARED_MEMORY, STOP_SIGNALS

# Items that each worker process prefetches (torch's default).
_PREFETCH_FACTOR = 2


class _Movable(Protocol):
    """A named tuple of tensors and numbers, such as a batch."""

    def to(self, device: torch.device) -> Self:
        """Return a copy on the device."""

    def __iter__(self) -> Iterator[object]:
        """Iterate over the fields."""


_Item = TypeVar("_Item", bound=_Movable)


def load_in_order(dataset: Dataset[_Item], items: Iterable[int], workers: int, pin: bool) -> DataLoader[_Item]:
    """Return a loader that yields the items in the given order, prefetched by worker processes.

    Args:
        dataset: each item is a whole batch or block.
        items: indices into `dataset`.
        workers: number of worker processes; 0 loads in this process.
        pin: copy items to pinned memory, for a GPU.
    """
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=list(items),
        num_workers=workers,
        prefetch_factor=_PREFETCH_FACTOR if workers else None,
        pin_memory=pin,
        worker_init_fn=_init_worker,
    )


def prefetch_to_device(loaded: Iterable[_Item], device: torch.device) -> Iterator[_Item]:
    """Yield batches or blocks in their order on the device. Each is copied before the previous one is yielded.

    On a GPU the copy runs on a separate stream, in parallel with the computation. The computation waits only for its
    own batch.
    """
    stream = _copy_stream(device) if device.type == "cuda" else None
    pending: tuple[_Item, torch.cuda.Event | None] | None = None
    for item in _explain_killed_workers(loaded):
        with torch.cuda.stream(stream):  # None has no effect
            copied = (item.to(device), None if stream is None else stream.record_event())
        if pending is not None:
            yield _wait_for_copy(*pending, device)
        pending = copied
    if pending is not None:
        yield _wait_for_copy(*pending, device)


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream for copies to a GPU. torch caches memory for each stream, so all epochs use the same one."""
    return torch.cuda.Stream(device)


def _wait_for_copy(item: _Item, event: torch.cuda.Event | None, device: torch.device) -> _Item:
    """Return the item once the device's current stream can use it."""
    if event is not None:
        stream = torch.cuda.current_stream(device)
        stream.wait_event(event)
        for part in item:
            if isinstance(part, Tensor) and part.is_cuda:
                part.record_stream(stream)  # keeps the memory until the computation has finished
    return item


def _explain_killed_workers(loaded: Iterable[_Item]) -> Iterator[_Item]:
    """Yield the loaded items, and convert the death of a worker process into an error with a hint.

    Raises:
        TrainingError: torch reports that a worker process was killed.
    """
    try:
        yield from loaded
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        hint = "Run the same command to resume, with fewer --workers if it happens again"
        raise TrainingError(
            "a data loading process was killed", "the usual reason is too little memory", hint
        ) from error


def limit_workers(requested: int, item_bytes: int, processes: int) -> int:
    """Return the number of worker processes whose prefetched items fit in shared memory.

    A container may have only 64 MiB of shared memory.

    Args:
        requested: number of worker processes without this limit.
        item_bytes: size of one item in bytes.
        processes: number of ranks on this machine, each with its own worker processes.
    """
    if requested == 0 or not SHARED_MEMORY.is_dir():
        return requested
    free_per_process = shutil.disk_usage(SHARED_MEMORY).free // processes
    return min(requested, free_per_process // (item_bytes * (_PREFETCH_FACTOR + 1)))


def _init_worker(worker: int) -> None:
    """Limit OpenCV and torch to one thread in a worker process, and ignore stop signals.

    With more threads, the workers would oversubscribe the cores. The training process handles stop signals, and needs
    its workers until it stops.
    """
    import cv2

    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)

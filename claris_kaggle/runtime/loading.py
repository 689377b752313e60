"""Load batches and blocks in worker processes and send them to the device ahead of time."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from claris_kaggle.core.errors import TrainingError
from claris_kaggle.core.platforms import SHARED_MEMORY, STOP_SIGNALS

# How many items each loader process has ready (torch's own default).
_AHEAD = 2


def load_in_order(dataset: Dataset[Any], items: Iterable[int], workers: int, pin: bool) -> DataLoader[Any]:
    """The items in their order, whole batches each, fetched by `workers` processes ahead of time."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=list(items),
        num_workers=workers,
        prefetch_factor=_AHEAD if workers else None,
        pin_memory=pin,
        worker_init_fn=_keep_to_one_core,
    )


def send_ahead(loaded: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """The batches or blocks in their order on the device, each sent before work on the one before it begins.

    A GPU copies them on a stream of its own, beside the work, and work waits for its own batch alone.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    sent: tuple[Any, Any] | None = None
    for item in _explain_workers(loaded):
        with torch.cuda.stream(stream):  # None changes nothing
            following = (item.to(device), None if stream is None else stream.record_event())
        if sent is not None:
            yield _receive(*sent, device)
        sent = following
    if sent is not None:
        yield _receive(*sent, device)


def _receive(item: Any, event: Any, device: torch.device) -> Any:
    """The item, for work on the device's usual stream."""
    if event is not None:
        working = torch.cuda.current_stream(device)
        working.wait_event(event)
        for part in item:
            if isinstance(part, Tensor) and part.is_cuda:
                part.record_stream(working)  # its memory is not given away while work on it is left
    return item


def _explain_workers(loaded: Iterable[Any]) -> Iterator[Any]:
    """What was loaded, and of a loader process that was killed, what to do.

    Raises:
        TrainingError: torch found one dead.
    """
    try:
        yield from loaded
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        hint = "Run the same command to go on, with fewer --workers if it happens again"
        raise TrainingError("a loader process was killed", "out of memory is the usual reason", hint) from error


def fitting_workers(wanted: int, item_bytes: int, processes: int) -> int:
    """As many loader processes as the shared memory holds items ahead for; a container may have 64 MiB of it.

    Args:
        item_bytes: of what a loader process sends at a time.
        processes: on this machine, each with its own loader processes.
    """
    if wanted == 0 or not SHARED_MEMORY.is_dir():
        return wanted
    room = shutil.disk_usage(SHARED_MEMORY).free // processes
    return min(wanted, room // (item_bytes * (_AHEAD + 1)))


def _keep_to_one_core(worker: int) -> None:
    """Stop OpenCV and torch from using threads in a loader worker: they would fight for the cores.

    A signal to the whole group is for the process that trains: without its workers it could not stop in order.
    """
    import cv2

    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)

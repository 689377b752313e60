"""From rows of a pack to tensors: the batches of a training epoch and the blocks of a prediction.

Which rows a step takes, and for which rank, depends on ids, seed, epoch and world size alone;
never on the number of loader workers.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from claris_kaggle.config import TrainConfig
from claris_kaggle.errors import TrainingError
from claris_kaggle.pack import Pack
from claris_kaggle.platforms import SHARED_MEMORY, STOP_SIGNALS
from claris_kaggle.transforms import ORDER, Geometry, color_draws, draw, stain_draws, turn_numbers

# How many items each loader process has ready (torch's own default).
AHEAD = 2


class Batch(NamedTuple):
    """One rank's part of a training step.

    Attributes:
        images: uint8 [B, crop, crop, 3].
        turns: int64 [B], the symmetries that the device has still to apply; empty where none.
        labels: int64 [B].
        colors, stains: float32 [B, 6], the draws of colour and stain.
        total_weight: the sum of class weights over the whole step, all ranks together.
    """

    images: Tensor
    turns: Tensor
    labels: Tensor
    colors: Tensor
    stains: Tensor
    total_weight: float

    def to(self, device: torch.device) -> Batch:
        """The batch on the device; from pinned memory without waiting."""
        return Batch._make((*(part.to(device, non_blocking=True) for part in self[:5]), self.total_weight))


class Block(NamedTuple):
    """Patches to predict: where they stand in the result (int64 [B]) and uint8 [B, 96, 96, 3]."""

    places: Tensor
    images: Tensor

    def to(self, device: torch.device) -> Block:
        """The block with its images on the device; from pinned memory without waiting."""
        return Block(self.places, self.images.to(device, non_blocking=True))


def split_evenly(total: int, size: int) -> list[tuple[int, int]]:
    """Begin and end of each of the ceil(total / size) parts, which differ by at most one row.

    So every patch is seen in every epoch and no step is a small remainder.

    >>> split_evenly(10, 4)
    [(0, 4), (4, 7), (7, 10)]
    """
    parts = max(1, -(-total // size))
    edges = [-(-total * part // parts) for part in range(parts + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))


@dataclass(frozen=True)
class TrainSet:
    """What a fold is trained on.

    Attributes:
        pack: holds at least `ids`.
        ids: sorted.
        labels: int64 [N], in the order of `ids`.
        class_weights: of label 0 and of label 1 in the loss.
    """

    pack: Pack
    ids: list[str]
    labels: NDArray[np.int64]
    class_weights: tuple[float, float] = (1.0, 1.0)


class EpochBatches(Dataset[Batch]):
    """The steps of one epoch for one rank; item `step` is that step's `Batch`.

    Args:
        config: gives batch size, seed and augmentation.
        turn_here: turn the patches in this process; else the batch says how the device should.
    """

    def __init__(
        self,
        trainset: TrainSet,
        config: TrainConfig,
        *,
        epoch: int,
        rank: int,
        world_size: int,
        turn_here: bool = True,
    ) -> None:
        self.trainset, self.config, self.rank, self.world_size = trainset, config, rank, world_size
        self.turn_here = turn_here or config.geometry != "d4"
        self.words = draw(config.seed, epoch, trainset.ids)
        self.order = np.argsort(self.words[:, ORDER], kind="stable")
        self.rows = trainset.pack.rows(trainset.ids)
        self.steps = split_evenly(len(trainset.ids), config.batch_size)
        # Made here, so that no loader process has to import albumentations in every epoch.
        self.geometry = Geometry(config.geometry, config.crop, config.shift, turn=self.turn_here)

    def __len__(self) -> int:
        """The number of steps, the same for every rank."""
        return len(self.steps)

    def __getitem__(self, step: int) -> Batch:
        """This rank's part of the step: every world_size-th row of it."""
        begin, end = self.steps[step]
        whole = self.order[begin:end]
        mine = whole[self.rank :: self.world_size]
        pixels = self.trainset.pack.pixels[self.rows[mine]]
        words = self.words[mine]
        labels = self.trainset.labels
        weights = np.array(self.trainset.class_weights)
        return Batch(
            torch.from_numpy(self.geometry(pixels, words)),
            torch.from_numpy(turn_numbers(words)[: 0 if self.turn_here else None]),
            torch.from_numpy(labels[mine]),
            torch.from_numpy(color_draws(words, self.config.color)),
            torch.from_numpy(stain_draws(words, self.config.stain)),
            float(weights[labels[whole]].sum()),
        )


class PredictionBlocks(Dataset[Block]):
    """Consecutive blocks of patches; the same blocks whatever the world size.

    So a patch is always computed in the same company, and its probability is the same to the bit.
    """

    def __init__(self, pack: Pack, ids: Sequence[str], block_size: int) -> None:
        self.pack, self.rows, self.block_size = pack, pack.rows(ids), block_size

    def __len__(self) -> int:
        """The number of blocks; the last one may be smaller."""
        return -(-len(self.rows) // self.block_size)

    def __getitem__(self, block: int) -> Block:
        """The block's places in the result and its images."""
        places = np.arange(block * self.block_size, min((block + 1) * self.block_size, len(self.rows)))
        return Block(torch.from_numpy(places), torch.from_numpy(self.pack.pixels[self.rows[places]]))


def load(dataset: Dataset[Any], items: Iterable[int], workers: int, pin: bool) -> DataLoader[Any]:
    """The items in their order, whole batches each, fetched by `workers` processes ahead of time."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=list(items),
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        pin_memory=pin,
        worker_init_fn=keep_to_one_core,
    )


def send_ahead(loaded: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """The batches or blocks in their order on the device, each sent before work on the one before it begins.

    A GPU copies them on a stream of its own, beside the work, and work waits for its own batch alone.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    sent: tuple[Any, Any] | None = None
    for item in explain_workers(loaded):
        with torch.cuda.stream(stream):  # None changes nothing
            following = (item.to(device), None if stream is None else stream.record_event())
        if sent is not None:
            yield receive(*sent, device)
        sent = following
    if sent is not None:
        yield receive(*sent, device)


def receive(item: Any, event: Any, device: torch.device) -> Any:
    """The item, for work on the device's usual stream."""
    if event is not None:
        working = torch.cuda.current_stream(device)
        working.wait_event(event)
        for part in item:
            if isinstance(part, Tensor) and part.is_cuda:
                part.record_stream(working)  # its memory is not given away while work on it is left
    return item


def explain_workers(loaded: Iterable[Any]) -> Iterator[Any]:
    """What was loaded, and of a loader process that was killed, what to do.

    Raises:
        TrainingError: torch found one dead.
    """
    try:
        yield from loaded
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        mend = "Run the same command to go on, with fewer --workers if it happens again"
        raise TrainingError("a loader process was killed", "out of memory is the usual reason", mend) from error


def fitting_workers(wanted: int, item_bytes: int, processes: int) -> int:
    """As many loader processes as the shared memory holds items ahead for; a container may have 64 MiB of it.

    Args:
        item_bytes: of what a loader process sends at a time.
        processes: on this machine, each with its own loader processes.
    """
    if wanted == 0 or not SHARED_MEMORY.is_dir():
        return wanted
    room = shutil.disk_usage(SHARED_MEMORY).free // processes
    return min(wanted, room // (item_bytes * (AHEAD + 1)))


def keep_to_one_core(worker: int) -> None:
    """Stop OpenCV and torch from using threads in a loader worker: they would fight for the cores.

    A signal to the whole group is for the process that trains: without its workers it could not stop in order.
    """
    import cv2

    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)

"""The batches of a training epoch and the blocks of a prediction, from rows of a pack.

Which rows a step takes, and for which rank, depends on ids, seed, epoch and world size alone;
never on the number of loader workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.data.augment import _ORDER_WORD, _color_draws, _draw_words, _Geometry, _stain_draws, _turn_numbers
from claris_kaggle.data.pack import Pack


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


class _Block(NamedTuple):
    """Patches to predict: where they stand in the result (int64 [B]) and uint8 [B, 96, 96, 3]."""

    places: Tensor
    images: Tensor

    def to(self, device: torch.device) -> _Block:
        """The block with its images on the device; from pinned memory without waiting."""
        return _Block(self.places, self.images.to(device, non_blocking=True))


def _split_evenly(total: int, size: int) -> list[tuple[int, int]]:
    """Begin and end of each of the ceil(total / size) parts, which differ by at most one row.

    So every patch is seen in every epoch and no step is a small remainder.

    >>> _split_evenly(10, 4)
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
        self.words = _draw_words(config.seed, epoch, trainset.ids)
        self.order = np.argsort(self.words[:, _ORDER_WORD], kind="stable")
        self.rows = trainset.pack.rows(trainset.ids)
        self.steps = _split_evenly(len(trainset.ids), config.batch_size)
        # Made here, so that no loader process has to import albumentations in every epoch.
        self.geometry = _Geometry(config.geometry, config.crop, config.shift, turn=self.turn_here)

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
            torch.from_numpy(_turn_numbers(words)[: 0 if self.turn_here else None]),
            torch.from_numpy(labels[mine]),
            torch.from_numpy(_color_draws(words, self.config.color)),
            torch.from_numpy(_stain_draws(words, self.config.stain)),
            float(weights[labels[whole]].sum()),
        )


class PredictionBlocks(Dataset[_Block]):
    """Consecutive blocks of patches; the same blocks whatever the world size.

    So a patch is always computed in the same company, and its probability is the same to the bit.
    """

    def __init__(self, pack: Pack, ids: Sequence[str], block_size: int) -> None:
        self.pack, self.rows, self.block_size = pack, pack.rows(ids), block_size

    def __len__(self) -> int:
        """The number of blocks; the last one may be smaller."""
        return -(-len(self.rows) // self.block_size)

    def __getitem__(self, block: int) -> _Block:
        """The block's places in the result and its images."""
        places = np.arange(block * self.block_size, min((block + 1) * self.block_size, len(self.rows)))
        return _Block(torch.from_numpy(places), torch.from_numpy(self.pack.pixels[self.rows[places]]))

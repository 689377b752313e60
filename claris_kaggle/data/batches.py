"""Training batches and prediction blocks, read from a pack.

The rows of a step and rank depend on ids, seed, epoch and world size only, never on the number of loader workers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.data.augment import (
    _ORDER_WORD,
    _color_draws,
    _draw_words,
    _Geometry,
    _stain_draws,
    _symmetry_numbers,
)
from claris_kaggle.data.pack import Pack
from claris_kaggle.data.strong_augment import _StrongAugmentation


class Batch(NamedTuple):
    """The part of a training step for one rank.

    Attributes:
        images: uint8 [B, crop, crop, 3].
        symmetries: int64 [B], symmetries that the device must apply; empty if none.
        labels: int64 [B].
        colors, stains: float32 [B, 6], random values of the colour and stain augmentation.
        total_weight: sum of class weight times patch weight over all patches of the step, on all ranks.
        weights: float32 [B], weight of each patch in the loss besides its class weight; None if all are 1.
    """

    images: Tensor
    symmetries: Tensor
    labels: Tensor
    colors: Tensor
    stains: Tensor
    total_weight: float
    weights: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on the device; the copy from pinned memory is asynchronous."""
        return self.map(lambda part: part.to(device, non_blocking=True))

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with the function applied to each of its tensors."""
        changed: dict[str, Any] = {
            name: function(part) for name, part in self._asdict().items() if isinstance(part, Tensor)
        }
        return self._replace(**changed)


class _Block(NamedTuple):
    """A block of patches to predict: their rows in the result, int64 [B], and images, uint8 [B, 96, 96, 3]."""

    rows: Tensor
    images: Tensor

    def to(self, device: torch.device) -> _Block:
        """Return the block with its images on the device; the copy from pinned memory is asynchronous."""
        return _Block(self.rows, self.images.to(device, non_blocking=True))


def _split_evenly(total: int, size: int) -> list[tuple[int, int]]:
    """Split `total` rows into ceil(total / size) parts, and return begin and end of each. Sizes differ by at most one.

    Every patch is used in every epoch, and no step is a small remainder.

    >>> _split_evenly(10, 4)
    [(0, 4), (4, 7), (7, 10)]
    """
    parts = max(1, -(-total // size))
    bounds = [-(-total * part // parts) for part in range(parts + 1)]
    return list(itertools.pairwise(bounds))


@dataclass(frozen=True)
class ExtraPatches:
    """Patches of another pack that a fold also trains on.

    Attributes:
        pack: contains at least `ids`.
        ids: sorted ids of the patches.
        labels: int64 [N], in the order of `ids`.
        weight: weight of each of them in the loss, relative to a training patch.
    """

    pack: Pack
    ids: list[str]
    labels: NDArray[np.int64]
    weight: float


@dataclass(frozen=True)
class TrainSet:
    """The training data of a fold.

    Attributes:
        pack: contains at least `ids`.
        ids: sorted ids of the training patches.
        labels: int64 [N], in the order of `ids`.
        class_weights: weights of label 0 and label 1 in the loss.
        extra: patches of another pack that are also trained on; None for none.
    """

    pack: Pack
    ids: list[str]
    labels: NDArray[np.int64]
    class_weights: tuple[float, float] = (1.0, 1.0)
    extra: ExtraPatches | None = None

    def __len__(self) -> int:
        """Return the number of patches of an epoch, with the extra ones."""
        return len(self.ids) + (len(self.extra.ids) if self.extra else 0)


class EpochBatches(Dataset[Batch]):
    """The steps of one epoch for one rank; item `step` is the `Batch` of that step.

    Args:
        trainset: the training data of the fold.
        config: sets batch size, seed and augmentation.
        epoch: number of the epoch, from 0.
        rank: rank of this process, from 0.
        world_size: number of ranks.
        transform_on_host: True applies the symmetries in this process; False leaves them to the device (see
            `Batch.symmetries`).
    """

    def __init__(
        self,
        trainset: TrainSet,
        config: TrainConfig,
        *,
        epoch: int,
        rank: int,
        world_size: int,
        transform_on_host: bool = True,
    ) -> None:
        self.trainset, self.config, self.rank, self.world_size = trainset, config, rank, world_size
        augmented = config.augment != "none"
        self.transform_on_host = augmented and (transform_on_host or config.geometry != "d4")
        self.symmetry_on_device = augmented and not self.transform_on_host
        extra = trainset.extra
        self.words = _draw_words(config.seed, epoch, trainset.ids + (extra.ids if extra else []))
        self.order = np.argsort(self.words[:, _ORDER_WORD], kind="stable")
        self.pack_rows, self.labels = trainset.pack.rows(trainset.ids), trainset.labels
        if extra:
            self.pack_rows = np.concatenate([self.pack_rows, extra.pack.rows(extra.ids)])
            self.labels = np.concatenate([self.labels, extra.labels])
        self.steps = _split_evenly(len(trainset), config.batch_size)
        # Created here, so that loader processes do not import albumentations in every epoch.
        self.geometry = _Geometry(config.geometry, config.crop, transform=self.transform_on_host)
        self.strong = _StrongAugmentation() if config.augment == "strong" else None

    def __len__(self) -> int:
        """Return the number of steps, the same for every rank."""
        return len(self.steps)

    @property
    def item_bytes(self) -> int:
        """The size of the images of the largest item, in bytes."""
        largest = max(end - begin for begin, end in self.steps)
        return -(-largest // self.world_size) * self.config.crop**2 * 3

    def __getitem__(self, step: int) -> Batch:
        """Return this rank's part of the step: every world_size-th row."""
        begin, end = self.steps[step]
        step_rows = self.order[begin:end]
        rank_rows = step_rows[self.rank :: self.world_size]
        pixels = self._read_pixels(rank_rows)
        words = self.words[rank_rows]
        if self.strong is not None:
            pixels = self.strong(pixels, words)
        labels, extra = self.labels, self.trainset.extra
        step_weights = np.array(self.trainset.class_weights)[labels[step_rows]]
        if extra:
            step_weights = step_weights * np.where(self._is_extra(step_rows), extra.weight, 1.0)
        weights = np.where(self._is_extra(rank_rows), extra.weight, 1.0) if extra else None
        return Batch(
            torch.from_numpy(self.geometry(pixels, words)),
            torch.from_numpy(_symmetry_numbers(words)[: None if self.symmetry_on_device else 0]),
            torch.from_numpy(labels[rank_rows]),
            torch.from_numpy(_color_draws(words, self.config.color)),
            torch.from_numpy(_stain_draws(words, self.config.stain)),
            float(step_weights.sum()),
            None if weights is None else torch.from_numpy(weights.astype(np.float32)),
        )

    def _is_extra(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return True for each row that is an extra patch; these follow the training patches."""
        return rows >= len(self.trainset.ids)

    def _read_pixels(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pixels of these rows, uint8 [B, 96, 96, 3]."""
        pack, extra = self.trainset.pack, self.trainset.extra
        if extra is None:
            return pack.pixels[self.pack_rows[rows]]
        is_extra = self._is_extra(rows)
        pixels = np.empty((len(rows), *pack.pixels.shape[1:]), dtype=np.uint8)
        for selected, source in ((~is_extra, pack), (is_extra, extra.pack)):
            pixels[selected] = source.pixels[self.pack_rows[rows[selected]]]
        return pixels


class PredictionBlocks(Dataset[_Block]):
    """A dataset of consecutive blocks of patches. The blocks do not depend on the world size.

    A patch is always in the same block, so its probability is bit-identical.
    """

    def __init__(self, pack: Pack, ids: Sequence[str], block_size: int) -> None:
        self.pack, self.pack_rows, self.block_size = pack, pack.rows(ids), block_size

    def __len__(self) -> int:
        """Return the number of blocks; the last block may be smaller."""
        return -(-len(self.pack_rows) // self.block_size)

    def __getitem__(self, block: int) -> _Block:
        """Return the block's rows in the result and its images."""
        rows = np.arange(block * self.block_size, min((block + 1) * self.block_size, len(self.pack_rows)))
        return _Block(torch.from_numpy(rows), torch.from_numpy(self.pack.pixels[self.pack_rows[rows]]))

"""Exact prediction of patches: one probability per id, for any number of processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.errors import TrainingError
from claris_kaggle.data.augment import crop_centre, to_input
from claris_kaggle.data.batches import PredictionBlocks
from claris_kaggle.data.d4 import view
from claris_kaggle.data.pack import Pack
from claris_kaggle.data.patches import PATCH_BYTES
from claris_kaggle.inference.tta import average_views
from claris_kaggle.runtime.distributed import World, gather_rows
from claris_kaggle.runtime.loading import limit_workers, load_in_order, prefetch_to_device
from claris_kaggle.runtime.precision import autocast

_ViewOutput = TypeVar("_ViewOutput")
# Patches per block. On a CPU a block should fit in the cache; on a GPU it should use the whole device.
_BLOCK_SIZE = {"cpu": 32, "cuda": 512}


def predict_ids(
    model: nn.Module,
    pack: Pack,
    ids: Sequence[str],
    world: World,
    config: TrainConfig,
    *,
    views: int = 8,
    workers: int = 0,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> NDArray[np.float32]:
    """Return the probability of label 1 of each id, averaged over the views.

    The ranks process blocks of fixed content in turn, without padding. The results are gathered by row, so they do not
    depend on the world size.

    Args:
        model: on the device of `world`, channels-last. It is set to evaluation mode.
        pack: the packed patches.
        ids: ids to predict, in any order.
        world: rank, world size and device of this process.
        config: crop, resolution, normalisation and precision are used.
        views: number of views of the test-time augmentation: 1, 4 or 8.
        workers: number of worker processes for data loading; 0 loads in this process.
        on_progress: called after each block with the number of patches that all ranks have processed since the last
            call.
    Returns:
        float32 [len(ids)] in 0..1, in the order of `ids`, on every rank.
    Raises:
        TrainingError: a block does not fit in GPU memory.
    """
    device = world.device
    blocks = PredictionBlocks(pack, ids, block_size(device))
    workers = limit_workers(workers, blocks.block_size * PATCH_BYTES, world.local_size)
    rank_blocks = range(world.rank, len(blocks), world.world_size)
    rows, values = [torch.empty(0, dtype=torch.int64)], [torch.empty(0)]
    model.eval()
    with torch.inference_mode(), _convert_out_of_memory(blocks.block_size):
        for block in prefetch_to_device(load_in_order(blocks, rank_blocks, workers, pin=device.type == "cuda"), device):
            rows.append(block.rows.clone())  # a tensor from a worker process keeps a file open
            values.append(average_views(_view_logits(model, block.images, config, views)))
            on_progress(len(block.rows) * world.world_size)
    return gather_rows(world, torch.cat(rows), torch.cat([part.cpu() for part in values]), len(ids)).numpy()


@contextlib.contextmanager
def _convert_out_of_memory(patches: int) -> Iterator[None]:
    """Convert an out-of-memory error into one with a hint.

    The block size is fixed and fits in an idle GPU, so another program probably uses the memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        found = f"the GPU memory is too small to predict {patches} patches at once"
        raise TrainingError(
            found, "", "Stop other programs on the GPU (see nvidia-smi), then run the command again"
        ) from error


def block_size(device: torch.device) -> int:
    """Return the number of patches in one block on the device."""
    return _BLOCK_SIZE.get(device.type, _BLOCK_SIZE["cpu"])


def _view_logits(model: nn.Module, images: Tensor, config: TrainConfig, views: int) -> Tensor:
    """Return the logits of each view of the patches, float32 [V, B, 2]."""
    return torch.stack([logits.float() for logits in _forward_views(model, images, config, views)])


def _forward_views(
    forward: Callable[[Tensor], _ViewOutput], images: Tensor, config: TrainConfig, views: int
) -> Iterator[_ViewOutput]:
    """Yield the output of `forward` for each view of the patches, uint8 [B, 96, 96, 3].

    Views are computed one after another. One large batch of all views is slower on a CPU, because it exceeds the cache.
    """
    images = crop_centre(images, config.crop)
    for number in range(views):
        with autocast(images.device, config.precision):
            result = forward(to_input(view(images, number), config.normalise, resolution=config.resolution))
        yield result

"""One exact pass over patches: each id's probability once, whatever the number of processes."""

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
from claris_kaggle.runtime.loading import fitting_workers, load_in_order, send_ahead
from claris_kaggle.runtime.precision import DTYPES

_ViewOutput = TypeVar("_ViewOutput")
# On a CPU a block must fit the cache; on a GPU it must fill the card.
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
    after: Callable[[int], None] = lambda rows: None,
) -> NDArray[np.float32]:
    """The probability of label 1 of each id, averaged over the views.

    Blocks of fixed content are dealt out to the ranks in turn and gathered by their rows, with no
    padding, so that the answer does not depend on the world size.

    Args:
        model: on the world's device, channels-last; it is put into evaluation mode.
        ids: in any order.
        config: gives crop, normalisation and precision.
        views: 1, 4 or 8.
        after: called with the number of patches that all ranks together have done.
    Returns:
        float32 [len(ids)] in 0..1, in the order of `ids`, on every rank.
    Raises:
        TrainingError: the GPU's memory does not hold a block.
    """
    device = world.device
    blocks = PredictionBlocks(pack, ids, block_size(device))
    workers = fitting_workers(workers, blocks.block_size * PATCH_BYTES, world.local_size)
    mine = range(world.rank, len(blocks), world.world_size)
    places, values = [torch.empty(0, dtype=torch.int64)], [torch.empty(0)]
    model.eval()
    with torch.inference_mode(), _explain_memory(blocks.block_size):
        for block in send_ahead(load_in_order(blocks, mine, workers, pin=device.type == "cuda"), device):
            places.append(block.places.clone())  # one that a worker sent holds a file open
            values.append(average_views(_view_logits(model, block.images, config, views)))
            after(len(block.places) * world.world_size)
    return gather_rows(world, torch.cat(places), torch.cat([part.cpu() for part in values]), len(ids)).numpy()


@contextlib.contextmanager
def _explain_memory(patches: int) -> Iterator[None]:
    """Say what to do where a block does not fit: its size is fixed, so that something else is in the way."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        found = f"the GPU's memory does not hold {patches} patches to predict"
        raise TrainingError(found, "", "End what else uses the card (nvidia-smi lists it), and run it again") from error


def block_size(device: torch.device) -> int:
    """How many patches are computed together on the device."""
    return _BLOCK_SIZE.get(device.type, _BLOCK_SIZE["cpu"])


def _view_logits(model: nn.Module, images: Tensor, config: TrainConfig, views: int) -> Tensor:
    """Logits of each view of the patches, float32 [V, B, 2]."""
    return torch.stack([logits.float() for logits in _through_views(model, images, config, views)])


def _through_views(
    forward: Callable[[Tensor], _ViewOutput], images: Tensor, config: TrainConfig, views: int
) -> Iterator[_ViewOutput]:
    """What `forward` makes of the network's input for each view of uint8 [B, 96, 96, 3], one view after another.

    One large batch of all views is slower on a CPU, where it leaves the cache.
    """
    images = crop_centre(images, config.crop)
    for number in range(views):
        with torch.autocast(images.device.type, DTYPES[config.precision], enabled=config.precision != "fp32"):
            result = forward(to_input(view(images, number), config.normalise, resolution=config.resolution))
        yield result

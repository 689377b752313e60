"""What speaks for and against: a patch's log-odds split exactly over the network's last grid.

A DenseNet ends in a mean over its last grid and one linear layer. Both are linear, so the log-odds
(malignant minus benign logit) are the sum of one part for each cell of the grid and a bias: the class
activation map of Zhou et al. 2016, which here leaves no rest. A cell's part says what was decided at that
place; what the cell saw reaches further, as layers before it looked around.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.errors import DataError
from claris_kaggle.data.arrays import Pixels
from claris_kaggle.data.d4 import view_back
from claris_kaggle.data.patches import CENTRE, PATCH_SHAPE
from claris_kaggle.inference.forward import _through_views, _view_logits, block_size
from claris_kaggle.inference.tta import average_views, require_views

_NO_MAP = "no map: this network does not end in a mean over a grid and one linear layer"
Float32Array = NDArray[np.float32]


@dataclass(frozen=True)
class Evidence:
    """What a network says of B patches, and where in them it comes from.

    Attributes:
        probabilities: float32 [B] of label 1, the mean over the views, as `forward.predict` gives.
        view_probabilities: float32 [V, B].
        log_odds: float32 [B], malignant minus benign logit, the mean over the views, in nats.
        maps: float32 [B, h, w] in nats, row by row from the patch's upper left, the mean over the views, each turned
            back; `maps.sum((1, 2)) + bias` are the log-odds. Above 0 speaks for malignant. The grid lies evenly over
            the centre that the network sees (`config.crop`). None for a network without such a split: `_NO_MAP`.
        bias: what is added whatever the patch; 0 without a map.
    """

    probabilities: Float32Array
    view_probabilities: Float32Array
    log_odds: Float32Array
    maps: Float32Array | None
    bias: float


def explain(model: nn.Module, images: Pixels, config: TrainConfig, *, views: int = 8) -> Evidence:
    """Probabilities of the patches and the split of their log-odds.

    Args:
        model: a network of `create_model`, its batch norms folded or not; it is put into evaluation mode.
        images: uint8 [B, 96, 96, 3], B at least 1.
        config: gives crop, normalisation and precision.
        views: 1, 4 or 8.
    Raises:
        UsageError: another number of views.
        DataError: the patches have another shape or type.
    """
    require_views(views)
    if images.dtype != np.uint8 or images.shape[1:] != PATCH_SHAPE or len(images) == 0:
        raise DataError(f"patches of {images.dtype} {list(images.shape)}", "uint8 [B, 96, 96, 3] is needed, B above 0")
    model.eval()
    device = next(model.parameters()).device
    size = block_size(device)
    with torch.inference_mode():
        last = _linear_head(model)
        blocks = [
            _explain_block(model, last, torch.tensor(images[start : start + size], device=device), config, views)
            for start in range(0, len(images), size)
        ]
        logits = torch.cat([block for block, _ in blocks], dim=1)
        return Evidence(
            probabilities=average_views(logits).cpu().numpy(),
            view_probabilities=logits.double().softmax(dim=2)[:, :, 1].float().cpu().numpy(),
            log_odds=(logits[:, :, 1] - logits[:, :, 0]).mean(dim=0).cpu().numpy(),
            maps=None if last is None else torch.cat([maps for _, maps in blocks]).float().cpu().numpy(),
            bias=0.0 if last is None else float(_class_difference(last.bias)),
        )


def _explain_block(
    model: nn.Module, last: nn.Linear | None, images: Tensor, config: TrainConfig, views: int
) -> tuple[Tensor, Tensor]:
    """Logits [V, B, 2] of one block of patches, and their maps [B, h, w]: empty where there is no `last`."""
    if last is None:
        return _view_logits(model, images, config, views), torch.empty(0)

    def forward(inputs: Tensor) -> tuple[Tensor, Tensor]:
        features = model.forward_features(inputs)  # type: ignore[operator]
        return model.forward_head(features), features  # type: ignore[operator]

    logits, maps = [], []
    for number, (answer, features) in enumerate(_through_views(forward, images, config, views)):
        logits.append(answer.float())
        maps.append(view_back(_split_log_odds(features, last), number))
    return torch.stack(logits), torch.stack(maps).mean(dim=0)


def _split_log_odds(features: Tensor, last: nn.Linear) -> Tensor:
    """What each cell of float [B, C, h, w] adds to the log-odds, float64 [B, h, w]."""
    cells = features.shape[2] * features.shape[3]
    return torch.einsum("bchw,c->bhw", features.double(), _class_difference(last.weight)) / cells


def _class_difference(classes: Tensor) -> Tensor:
    """The malignant class's numbers minus the benign one's, float64."""
    return classes[1].double() - classes[0].double()


def _linear_head(model: nn.Module) -> nn.Linear | None:
    """The last layer, if all that stands before it after the last grid is a mean; else None.

    Found out by trial with a random grid, and not by the network's name.
    """
    classifier, head = getattr(model, "get_classifier", None), getattr(model, "forward_head", None)
    last = classifier() if classifier else None
    if head is None or not isinstance(last, nn.Linear):
        return None
    generator = torch.Generator().manual_seed(0)
    grid = torch.randn(1, last.in_features, 3, 3, generator=generator).to(last.weight)
    try:
        found = head(grid)
    except (RuntimeError, ValueError, IndexError, AssertionError):  # heads of another layout
        return None
    needed = last(grid.mean(dim=(2, 3)))
    return last if found.shape == needed.shape and torch.allclose(found, needed, rtol=1e-3, atol=1e-4) else None


def centre_share(maps: Float32Array, crop: int) -> Float32Array:
    """The share of each map's weight that lies in the middle 32 x 32 pixels, of which the label speaks.

    Weight is the absolute value: parts for and against would cancel, and their ratio could be any number. A cell
    that lies half inside counts by half. An even map gives the share of the area, a ninth of a whole patch.

    Args:
        maps: float [B, h, w] as in `Evidence`.
        crop: side of the square that the grid lies over, in pixels.
    Returns:
        float32 [B] in 0..1; 0 for a map of zeros.
    """
    rows, columns = (_overlap_with_centre(cells, crop) for cells in maps.shape[1:])
    weight = np.abs(maps).astype(np.float64)
    total = weight.sum(axis=(1, 2))
    inside = np.einsum("bhw,h,w->b", weight, rows, columns)
    return np.divide(inside, total, out=np.zeros_like(total), where=total > 0).astype(np.float32)


def _overlap_with_centre(cells: int, crop: int) -> NDArray[np.float64]:
    """How much of each of so many cells along one side lies in the centre, float64 [cells] in 0..1.

    >>> _overlap_with_centre(3, 96).tolist(), _overlap_with_centre(2, 96).tolist()
    ([0.0, 1.0, 0.0], [0.3333333333333333, 0.3333333333333333])
    """
    edges = np.linspace(0, crop, cells + 1)
    low, high = (crop - CENTRE) / 2, (crop + CENTRE) / 2
    return np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) * cells / crop

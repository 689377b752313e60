"""Evidence maps: the log-odds of a patch, split exactly over the cells of the last feature map.

A DenseNet ends in a mean over its last feature map and one linear layer. Both are linear, so the log-odds (malignant
minus benign logit) are the sum of one contribution per cell and a bias. This is the class activation map of Zhou et
al. 2016, here without a remainder. A contribution belongs to the position of its cell. The receptive field of the cell
is larger, because earlier layers use neighbouring pixels.

Other poolings have an exact split too. A maximum is assigned to the cell that has it. In a generalised mean, each cell
gets the share of its power in the sum of powers. Heads with a normalisation or attention between the map and the linear
layer have no such split.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.errors import DataError
from claris_kaggle.data.arrays import Pixels
from claris_kaggle.data.d4 import undo_view
from claris_kaggle.data.patches import CENTRE, PATCH_SHAPE
from claris_kaggle.inference.forward import _forward_views, _view_logits, block_size
from claris_kaggle.inference.tta import average_views, require_views
from claris_kaggle.models.pooling import MIN_VALUE, GeM

NO_MAP = "no evidence map: the head of this network is not only a global pooling and one linear layer"
Float32Array = NDArray[np.float32]


@dataclass(frozen=True)
class Evidence:
    """Predictions of a network for B patches, with their evidence maps.

    Attributes:
        probabilities: float32 [B] in 0..1, of label 1, the mean over the views, as `forward.predict_ids` returns.
        view_probabilities: float32 [V, B] in 0..1, of label 1.
        log_odds: float32 [B] in nats, malignant minus benign logit, the mean over the views.
        maps: float32 [B, h, w] in nats, rows from the top, columns from the left, the mean over the views after each
            is rotated and flipped back. `maps.sum((1, 2)) + bias` equals the log-odds. Values above 0 support
            malignant. The cells divide the centre crop that the network sees (`config.crop`) evenly. None if the
            network has no such split (`NO_MAP`).
        bias: constant term of the log-odds in nats; 0 without a map.
    """

    probabilities: Float32Array
    view_probabilities: Float32Array
    log_odds: Float32Array
    maps: Float32Array | None
    bias: float


def explain(model: nn.Module, images: Pixels, config: TrainConfig, *, views: int = 8) -> Evidence:
    """Return the probabilities of the patches and the split of their log-odds.

    Args:
        model: a network from `create_model`, with or without fused batch norms. It is set to evaluation mode.
        images: uint8 [B, 96, 96, 3], B at least 1.
        config: crop, resolution, normalisation and precision are used.
        views: number of views of the test-time augmentation: 1, 4 or 8.
    Raises:
        UsageError: another number of views.
        DataError: another shape or dtype of `images`.
    """
    require_views(views)
    if images.dtype != np.uint8 or images.shape[1:] != PATCH_SHAPE or len(images) == 0:
        raise DataError(
            f"patches of {images.dtype} {list(images.shape)}", "expected uint8 [B, 96, 96, 3] with B above 0"
        )
    model.eval()
    device = next(model.parameters()).device
    size = block_size(device)
    with torch.inference_mode():
        head = _find_linear_head(model)
        blocks = [
            _explain_block(model, head, torch.tensor(images[start : start + size], device=device), config, views)
            for start in range(0, len(images), size)
        ]
        logits = torch.cat([block for block, _ in blocks], dim=1)
        return Evidence(
            probabilities=average_views(logits).cpu().numpy(),
            view_probabilities=logits.double().softmax(dim=2)[:, :, 1].float().cpu().numpy(),
            log_odds=(logits[:, :, 1] - logits[:, :, 0]).mean(dim=0).cpu().numpy(),
            maps=None if head is None else torch.cat([maps for _, maps in blocks]).float().cpu().numpy(),
            bias=0.0 if head is None else float(_class_difference(head.last.bias)),
        )


@dataclass(frozen=True)
class _Head:
    """The head of a network whose log-odds can be split exactly.

    Attributes:
        last: the linear layer.
        split: maps a feature map, float64 [B, C, h, w], to the contributions of each cell to the pooled values,
            [B, F, h, w]. F is the number of inputs of `last`.
        channels_last: the feature map of the network is [B, h, w, C].
    """

    last: nn.Linear
    split: Callable[[Tensor], Tensor]
    channels_last: bool


def _explain_block(
    model: nn.Module, head: _Head | None, images: Tensor, config: TrainConfig, views: int
) -> tuple[Tensor, Tensor]:
    """Return the logits [V, B, 2] of one block of patches and their maps [B, h, w]: empty if `head` is None."""
    if head is None:
        return _view_logits(model, images, config, views), torch.empty(0)

    def forward(inputs: Tensor) -> tuple[Tensor, Tensor]:
        features = model.forward_features(inputs)  # type: ignore[operator]
        return model.forward_head(features), features  # type: ignore[operator]

    logits, maps = [], []
    for number, (view_logits, features) in enumerate(_forward_views(forward, images, config, views)):
        logits.append(view_logits.float())
        maps.append(undo_view(_split_log_odds(features, head), number))
    return torch.stack(logits), torch.stack(maps).mean(dim=0)


def _split_log_odds(features: Tensor, head: _Head) -> Tensor:
    """Return the contribution of each cell of the feature map to the log-odds, float64 [B, h, w]."""
    cells = features.permute(0, 3, 1, 2) if head.channels_last else features
    return torch.einsum("bchw,c->bhw", head.split(cells.double()), _class_difference(head.last.weight))


def _split_mean(features: Tensor) -> Tensor:
    """Return the contribution of each cell to the mean over all cells."""
    return features / (features.shape[2] * features.shape[3])


def _split_maximum(features: Tensor) -> Tensor:
    """Return the contribution of each cell to the maximum: the first cell with this value gets all of it."""
    flat = features.flatten(2)
    index = flat.argmax(dim=2, keepdim=True)
    return torch.zeros_like(flat).scatter(2, index, flat.gather(2, index)).reshape(features.shape)


def _split_power_mean(features: Tensor, exponent: Tensor) -> Tensor:
    """Return the contribution of each cell to the generalised mean: its share of the sum of the powers."""
    powers = features.clamp(min=MIN_VALUE).pow(exponent)
    total = powers.sum(dim=(2, 3), keepdim=True)
    return powers / total * (total / (features.shape[2] * features.shape[3])).pow(1 / exponent)


def _find_splits(model: nn.Module) -> list[Callable[[Tensor], Tensor]]:
    """Return the splits for the poolings that a head may have, in the order in which to try them."""
    splits = [
        _split_mean,
        _split_maximum,
        lambda features: (_split_mean(features) + _split_maximum(features)) / 2,
        lambda features: torch.cat([_split_mean(features), _split_maximum(features)], dim=1),
    ]
    gem_layers = [layer for layer in model.modules() if isinstance(layer, GeM)]
    return [partial(_split_power_mean, exponent=gem_layers[0].p.double())] if gem_layers else splits


def _class_difference(classes: Tensor) -> Tensor:
    """Return the values of the malignant class minus those of the benign class, float64."""
    return classes[1].double() - classes[0].double()


def _find_linear_head(model: nn.Module) -> _Head | None:
    """Return the head of the network if it is a global pooling and one linear layer; else None.

    Tests this with a random feature map instead of relying on the name of the network.
    """
    classifier, forward_head = getattr(model, "get_classifier", None), getattr(model, "forward_head", None)
    last = classifier() if classifier else None
    if forward_head is None or not isinstance(last, nn.Linear):
        return None
    channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
    channels = getattr(model, "num_features", last.in_features)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, channels, 3, 3, generator=generator).to(last.weight)
    try:
        actual = forward_head(features.permute(0, 2, 3, 1) if channels_last else features)
    except (RuntimeError, ValueError, IndexError, AssertionError):  # other kinds of heads
        return None
    for split in _find_splits(model):
        pooled = split(features.double()).sum(dim=(2, 3)).to(last.weight)
        if pooled.shape[1] != last.in_features:
            continue
        expected = last(pooled)
        if actual.shape == expected.shape and torch.allclose(actual, expected, rtol=1e-3, atol=1e-4):
            return _Head(last, split, channels_last)
    return None


def centre_share(maps: Float32Array, crop: int) -> Float32Array:
    """Return the share of each map that lies in the labelled centre, the middle 32 x 32 pixels.

    Uses absolute values, because positive and negative contributions would cancel and make the ratio meaningless. A
    cell that is half inside counts half. A uniform map gives the share of the area: one ninth for a whole patch.

    Args:
        maps: float [B, h, w] as in `Evidence`.
        crop: side of the square that the map covers, in pixels.
    Returns:
        float32 [B] in 0..1; 0 for a map of zeros.
    """
    rows, columns = (_overlap_with_centre(cells, crop) for cells in maps.shape[1:])
    weight = np.abs(maps).astype(np.float64)
    total = weight.sum(axis=(1, 2))
    in_centre = np.einsum("bhw,h,w->b", weight, rows, columns)
    return np.divide(in_centre, total, out=np.zeros_like(total), where=total > 0).astype(np.float32)


def _overlap_with_centre(cells: int, crop: int) -> NDArray[np.float64]:
    """Return the share of each cell along one side that lies in the centre, float64 [cells] in 0..1.

    >>> _overlap_with_centre(3, 96).tolist(), _overlap_with_centre(2, 96).tolist()
    ([0.0, 1.0, 0.0], [0.3333333333333333, 0.3333333333333333])
    """
    edges = np.linspace(0, crop, cells + 1)
    low, high = (crop - CENTRE) / 2, (crop + CENTRE) / 2
    return np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) * cells / crop

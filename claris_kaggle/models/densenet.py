"""DenseNet variants for small patches with a labelled centre. Weights keep timm's names and shapes.

At an input size of 48 pixels, the last feature map of DenseNet-121 is a single cell. The 3 x 3 kernels of its last
block then see only padding around that cell, and its batch norms get one value per patch. Without the last pooling,
the last feature map is 3 x 3 cells, as with 96 pixels. Its middle cell covers the labelled 32 x 32 pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from claris_kaggle.core.errors import UsageError

_CENTRE_SHARE = 0.5  # share of the pooling weight that only the middle cells get


class _CentreWeight(nn.Module):
    """A layer that gives the middle of the feature map half of the weight in the mean pooling.

    The pooled value is half the mean of all cells plus half the mean of the middle cells: one, or two along a side of
    even length. The layer comes before the pooling and is linear, so the log-odds still split exactly over the cells.
    """

    def forward(self, grid: Tensor) -> Tensor:
        """Return the feature map, float [B, C, h, w], times the weights of its cells, which have a mean of 1."""
        rows, columns = (_middle_weights(side, grid) for side in grid.shape[2:])
        return grid * (1 - _CENTRE_SHARE + _CENTRE_SHARE * rows[:, None] * columns)


def _middle_weights(cells: int, like: Tensor) -> Tensor:
    """Return weights along one side, [cells] with a mean of 1: 0 except for the middle cell or the middle two.

    >>> _middle_weights(3, torch.empty(0)).tolist(), _middle_weights(4, torch.empty(0)).tolist()
    ([0.0, 3.0, 0.0], [0.0, 2.0, 2.0, 0.0])
    """
    weights = torch.zeros(cells, dtype=like.dtype, device=like.device)
    inner = slice((cells - 1) // 2, cells // 2 + 1)
    weights[inner] = cells / (inner.stop - inner.start)
    return weights


def _change_layout(model: nn.Module, *, stem: str, tail: str, pooling: str) -> None:
    """Remove or replace pooling layers, or weight the last one, in place. The defaults change nothing.

    Args:
        stem: `no-pool` removes the first pooling, so all later layers have twice the resolution. `pool4` replaces
            it (overlapping 3 x 3, stride 2) by 4 x 4 with stride 4: half the resolution at about a quarter of the cost.
        tail: `no-pool` removes the pooling before the last block, so the last feature map has twice the resolution.
        pooling: `centre` gives the middle of the last feature map half of the weight.
    Raises:
        UsageError: an option is set and the network is not a DenseNet.
    """
    features: Any = getattr(model, "features", None)
    if stem != "pool":
        _require_densenet(model, f"--stem is {stem}")
        features.pool0 = nn.Identity() if stem == "no-pool" else nn.MaxPool2d(4)
    if tail == "no-pool":
        _require_densenet(model, f"--tail is {tail}")
        last = max(name for name, _ in features.named_children() if name.startswith("transition"))
        getattr(features, last).pool = nn.Identity()
    if pooling == "centre":
        _require_densenet(model, f"--pooling is {pooling}")
        features.add_module("centre", _CentreWeight())


def _require_densenet(model: nn.Module, found: str) -> None:
    """Raise an error unless the network is a DenseNet.

    Args:
        found: first part of the message: the option and its value.
    Raises:
        UsageError: the network is not a DenseNet.
    """
    if not hasattr(getattr(model, "features", None), "pool0"):
        raise UsageError(found, "only a DenseNet has that layer", "Leave the flag out, or give --model densenet121")

"""A DenseNet laid out for small patches whose middle is what the label speaks of; weights keep names and shapes.

On 48 pixels DenseNet-121 ends in one cell: its last block's 3 x 3 kernels see nothing but padding beside it, and its
batch norms go by one value a patch. Without the last pooling a patch ends in 3 x 3 cells, as 96 pixels do, and the
middle one of them lies over the labelled 32 x 32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from claris_kaggle.core.errors import UsageError

_CENTRE_SHARE = 0.5  # of the head's weight that is the middle's alone


class _CentreWeight(nn.Module):
    """Weighs a grid so that its mean is half that of all cells and half that of the middle one, or four.

    It stands before the pooling and is linear, so that what each cell adds to the answer can still be told.
    """

    def forward(self, grid: Tensor) -> Tensor:
        """The grid float [B, C, h, w] with its middle made heavier; weights have a mean of 1."""
        rows, columns = (_middle_weights(side, grid) for side in grid.shape[2:])
        return grid * (1 - _CENTRE_SHARE + _CENTRE_SHARE * rows[:, None] * columns)


def _middle_weights(cells: int, like: Tensor) -> Tensor:
    """Weights of so many cells along one side, [cells] with a mean of 1: 0 beside the middle one, or two.

    >>> _middle_weights(3, torch.empty(0)).tolist(), _middle_weights(4, torch.empty(0)).tolist()
    ([0.0, 3.0, 0.0], [0.0, 2.0, 2.0, 0.0])
    """
    weights = torch.zeros(cells, dtype=like.dtype, device=like.device)
    inner = slice((cells - 1) // 2, cells // 2 + 1)
    weights[inner] = cells / (inner.stop - inner.start)
    return weights


def _change_layout(model: nn.Module, *, stem: str, tail: str, pooling: str) -> None:
    """Take poolings away or weigh the last one, in place.

    Args:
        stem: `no-pool` takes the first pooling away: all that follows sees twice the resolution; with `pool4` it
            takes 4 x 4 in place of overlapping 3 x 3 by twos: half the resolution, at about a quarter of the cost.
        tail: `no-pool` takes the one before the last block away: the last grid has twice the resolution.
        pooling: `centre` gives the middle of the last grid half of the weight.
    Raises:
        UsageError: the network is no DenseNet.
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
    """Refuse what only a DenseNet has.

    Raises:
        UsageError: the network is another.
    """
    if not hasattr(getattr(model, "features", None), "pool0"):
        raise UsageError(found, "only a DenseNet has that layer", "Leave the flag out, or give --model densenet121")

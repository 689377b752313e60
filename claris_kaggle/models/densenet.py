"""DenseNet variants for small patches. Weights keep timm's names and shapes.

At an input size of 48 pixels, the last feature map of DenseNet-121 is a single cell. The 3 x 3 kernels of its last
block then see only padding around that cell, and its batch norms get one value per patch. Without the last pooling,
the last feature map is 3 x 3 cells, as with 96 pixels. Its middle cell covers the labelled 32 x 32 pixels.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from claris_kaggle.core.errors import UsageError


def _change_pooling(model: nn.Module, *, stem: str, tail: str) -> None:
    """Remove or replace pooling layers in place. The defaults change nothing.

    Args:
        stem: `no-pool` removes the first pooling, so all later layers have twice the resolution. `pool4` replaces
            it (overlapping 3 x 3, stride 2) by 4 x 4 with stride 4: half the resolution at about a quarter of the cost.
        tail: `no-pool` removes the pooling before the last block, so the last feature map has twice the resolution.
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


def _require_densenet(model: nn.Module, found: str) -> None:
    """Raise an error unless the network is a DenseNet.

    Args:
        found: first part of the message: the option and its value.
    Raises:
        UsageError: the network is not a DenseNet.
    """
    if not hasattr(getattr(model, "features", None), "pool0"):
        raise UsageError(found, "only DenseNets have this layer", "Remove the flag, or use --model densenet121")

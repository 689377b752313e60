"""Regularisation: mixup, cutmix and stochastic depth.

Random draws depend only on (seed, step, rank), so a resumed run ends with the same result as an uninterrupted one.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from claris_kaggle.core.errors import UsageError
from claris_kaggle.data.augment import crop_centre
from claris_kaggle.data.patches import CENTRE


def _step_draws(seed: int, step: int, rank: int = 0) -> np.random.Generator:
    """Return the random generator of one step, counted over all epochs. `rank` is 0 where all ranks draw the same."""
    return np.random.default_rng((seed, step, rank))


def _mixup_share(seed: int, step: int, strength: float) -> float:
    """Return the mixup weight of a step's own patches, in 0..1: Beta(strength, strength) (Zhang et al. 2018)."""
    return float(_step_draws(seed, step).beta(strength, strength))


def _has_surroundings_mixed(seed: int, step: int, share: float) -> bool:
    """Return True if cutmix applies to the step. It applies to `share` (0..1) of all steps."""
    return bool(_step_draws(seed, step).random() < share)


def _mix_surroundings(images: Tensor) -> Tensor:
    """Return patches whose middle 32 x 32 pixels are kept and whose surroundings come from another patch.

    This is CutMix (Yun et al. 2019) without mixed labels, because the label depends on the middle only.

    Args:
        images: [B, S, S, C]. The first is paired with the last, and so on, because the order is already random.
    """
    mixed = images.flip(0)
    crop_centre(mixed, CENTRE).copy_(crop_centre(images, CENTRE))
    return mixed


def _drop_layers(model: nn.Module, share: float) -> None:
    """Add stochastic depth to the dense layers of a DenseNet, in place (Huang et al. 2016).

    Args:
        model: a DenseNet.
        share: probability, in 0..1, that a layer outputs zeros for a patch in training.
    Raises:
        UsageError: the network has no dense layers.
    """
    layers = [part for part in model.modules() if type(part).__name__ == "DenseLayer"]
    if not layers:
        raise UsageError(f"--drop-path is {share:g}", "only a DenseNet has layers to leave out", "Give --drop-path 0")
    for layer in layers:  # a hook keeps the names of the weights
        layer.register_forward_hook(functools.partial(_drop_layer_output, share=share))


def _drop_layer_output(layer: nn.Module, _inputs: Any, output: Tensor, *, share: float) -> Tensor:
    """Return the layer's output. In training it is zero for some patches and scaled up for the others."""
    return stochastic_depth(output, share, "row", layer.training)


def _seed_layers(seed: int, step: int, rank: int) -> None:
    """Seed torch's random numbers, which select the layers that the next step drops."""
    torch.manual_seed(int(_step_draws(seed, step, rank).integers(2**63)))

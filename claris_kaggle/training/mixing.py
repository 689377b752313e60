"""Regularisers that make training harder on purpose: mixed patches and layers left out.

What a step draws is a function of (seed, step, rank), so a run that goes on ends as one that was never stopped.
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
    """The random numbers of one step, counted over the whole training; of one rank, where ranks are to differ."""
    return np.random.default_rng((seed, step, rank))


def _mixup_share(seed: int, step: int, strength: float) -> float:
    """The share of its own that each patch of a step keeps, in 0..1: Beta(strength, strength), Zhang et al. 2018."""
    return float(_step_draws(seed, step).beta(strength, strength))


def _has_surroundings_mixed(seed: int, step: int, share: float) -> bool:
    """Whether the step is one of that share of steps."""
    return bool(_step_draws(seed, step).random() < share)


def _mix_surroundings(images: Tensor) -> Tensor:
    """The middle 32 x 32 of each patch in the surroundings of another: CutMix (Yun et al. 2019) where labels stay.

    Args:
        images: [B, S, S, C]; the first is paired with the last, and so on: their order is random already.
    """
    mixed = images.flip(0)
    crop_centre(mixed, CENTRE).copy_(crop_centre(images, CENTRE))
    return mixed


def _drop_layers(model: nn.Module, share: float) -> None:
    """From now on each layer of the DenseNet gives zeros for that share of the patches in training (Huang et al. 2016).

    Raises:
        UsageError: the network has no such layers.
    """
    layers = [part for part in model.modules() if type(part).__name__ == "DenseLayer"]
    if not layers:
        raise UsageError(f"--drop-path is {share:g}", "only a DenseNet has layers to leave out", "Give --drop-path 0")
    for layer in layers:  # a hook, so that the names of weights stay
        layer.register_forward_hook(functools.partial(_drop_layer_output, share=share))


def _drop_layer_output(layer: nn.Module, _inputs: Any, output: Tensor, *, share: float) -> Tensor:
    """The layer's output, zero for some patches in training and greater for the rest."""
    return stochastic_depth(output, share, "row", layer.training)


def _seed_layers(seed: int, step: int, rank: int) -> None:
    """Fix which layers the coming step leaves out."""
    torch.manual_seed(int(_step_draws(seed, step, rank).integers(2**63)))

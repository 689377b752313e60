"""Networks by name, and their settings: input size and normalisation."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from claris_kaggle.core.config import PATCH_SIZE, TrainConfig
from claris_kaggle.core.errors import UsageError, name_few
from claris_kaggle.data.augment import STATISTICS
from claris_kaggle.models.densenet import _change_layout
from claris_kaggle.models.p4m import _share_weights

_CLASS_COUNT = 2


class _TinyNet(nn.Sequential):
    """A network of 1,450 weights, batch norm and global pooling included, for trials and tests."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=4, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, _CLASS_COUNT),
        )

    def forward_features(self, images: Tensor) -> Tensor:
        """What the pooling takes, as timm's networks name it: float [B, 16, S / 8, S / 8]."""
        for part in list(self)[:-3]:
            images = part(images)
        return images

    def forward_head(self, features: Tensor) -> Tensor:
        """Logits [B, 2] of what `forward_features` gave."""
        for part in list(self)[-3:]:
            features = part(features)
        return features

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self[-1]


def create_model(
    name: str,
    seed: int = 0,
    *,
    stem: str = "pool",
    tail: str = "pool",
    pooling: str = "mean",
    equivariance: str = "none",
    side: int = PATCH_SIZE,
) -> nn.Module:
    """A network with random weights that depend on name, seed and layers alone; logits are float [B, 2].

    Args:
        stem: `no-pool` takes DenseNet's first pooling away, `pool4` makes it coarser; for this and the next two see
            `densenet.lay_out`.
        tail: `no-pool` takes its last pooling between blocks away.
        pooling: `centre` gives the middle of the last grid half of the weight.
        equivariance: `p4m` shares weights among eight orientations, for training; see `p4m.plain`.
        side: input size in pixels, for networks that are made for one size, as most vision transformers.
    Raises:
        UsageError: timm has no network of that name (the message has near ones), it has not the layers for this, or
            cannot take inputs of that side.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _TinyNet() if name == "tiny" else _create_timm_model(name, side)
    _change_layout(model, stem=stem, tail=tail, pooling=pooling)
    return _share_weights(model) if equivariance == "p4m" else model


def trained_network(config: TrainConfig) -> nn.Module:
    """The network that the weights of a run's finished folds are of."""
    return create_model(config.model, **config.layout, side=config.side)


def _create_timm_model(name: str, side: int) -> Any:
    """timm's network of two classes, its random weights drawn from torch's global generator.

    Raises:
        UsageError: timm does not know the name, or the network cannot be made for inputs of that side.
    """
    import timm

    _require_known(name)
    settings = timm.models.get_pretrained_cfg(name)
    if settings is None or not settings.fixed_input_size:
        return timm.create_model(name, pretrained=False, num_classes=_CLASS_COUNT)
    try:
        return timm.create_model(name, pretrained=False, num_classes=_CLASS_COUNT, img_size=side)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise _cannot_take(name, side) from error


def require_side(model: nn.Module, name: str, side: int) -> None:
    """Raise an error unless the network takes inputs of that side; one forward pass tells.

    Raises:
        UsageError: it fails; the message names the size that its published weights were made for.
    """
    was_training = model.training
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, 3, side, side))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _cannot_take(name, side) from error
    finally:
        model.train(was_training)


def _cannot_take(name: str, side: int) -> UsageError:
    """Return the error for a network that does not take inputs of that side."""
    import timm

    settings = timm.models.get_pretrained_cfg(name)
    own = settings.input_size[-1] if settings else PATCH_SIZE
    found = f"--model {name} does not take inputs of {side} x {side} pixels"
    return UsageError(found, f"its own input size is {own}", f"Give --resolution {own}, or another network")


def own_normalisation(name: str) -> str:
    """Return the key of `STATISTICS` with the mean and deviation that the network's published weights were made with.

    Raises:
        UsageError: they are none that is known here.
    """
    import timm

    settings = None if name == "tiny" else timm.models.get_pretrained_cfg(name)
    if settings is None:
        return "patches"
    for key, (mean, deviation) in STATISTICS.items():
        if np.allclose(settings.mean, mean, atol=1e-3) and np.allclose(settings.std, deviation, atol=1e-3):
            return key
    found = f"--normalise model: {name} has mean {settings.mean} and deviation {settings.std}"
    raise UsageError(found, "none of those that are known by name", f"Give --normalise {', '.join(STATISTICS)}")


def _require_known(name: str) -> None:
    """Refuse a name that timm does not know.

    Raises:
        UsageError: with near ones.
    """
    import timm

    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0][:8]}*")
        known = f"near ones: {name_few(near)}" if near else "densenet121 is the one to begin with"
        raise UsageError(f"--model is {name!r}", "timm knows no network of that name", known[0].upper() + known[1:])


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """A copy for inference with each batch norm that directly follows a convolution folded into it.

    In timm's DenseNet that is the first norm and the second of each layer, 59 of DenseNet-121's 121; the
    others stand before their convolution, and stay. Other networks are copied as they are.
    """
    folded = copy.deepcopy(model).eval()
    if type(model).__name__ == "DenseNet":
        layers = [part for part in folded.modules() if type(part).__name__ == "DenseLayer"]
        for parent, conv, norm in [(folded.features, "conv0", "norm0"), *((part, "conv1", "norm2") for part in layers)]:
            setattr(parent, norm, _fold_pair(getattr(parent, conv), getattr(parent, norm)))
    return folded


def _fold_pair(conv: nn.Conv2d, norm: Any) -> nn.Module:
    """Put the norm's affine map into the convolution, in place; returns the activation that timm's norm ends with."""
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    conv.to(memory_format=torch.channels_last)
    activation: nn.Module = norm.act
    return activation

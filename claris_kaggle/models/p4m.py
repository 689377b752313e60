"""A network that is equivariant to the symmetries of the square (p4m): each kernel is used in eight orientations.

The method is from Cohen and Welling 2016; Veeling et al. 2018 use it in DenseNets for this task. Channels come in
groups of eight, one per view of `data.d4`. Rotating the patch rotates the feature maps and permutes the channels within
each group, so the pooled values of a group only change their order. This holds only for input sizes at which every
stride samples the same pixels from both ends: 93 or 61 for a DenseNet, not 96 (`require_symmetric`). Shapes and
operations are those of the plain network. The network learns an eighth of the weights.

escnn builds such networks from its own layers and tensors. This module uses torch's parametrizations to share the
weights of timm's network instead. A finished fold is saved as a plain weight file, which all other modules can read.
"""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from claris_kaggle.core.config import MIN_SIDE
from claris_kaggle.core.errors import UsageError
from claris_kaggle.data.d4 import view
from claris_kaggle.models.pooling import GeM

_GROUP_ORDER = 8  # number of symmetries of the square
_P4M_HINT = "Give --equivariance none, or a DenseNet"


def _view_grid(side: int, number: int) -> Tensor:
    """Return the source cell of each cell of a square grid in that view: int64 [side, side], row-major indices."""
    cells = torch.arange(side * side).reshape(1, side, side)
    return view(cells, number)[0]


@functools.cache  # DenseNet-121 calls it 119 times
def _relative_views() -> list[list[int]]:
    """Return a table [g][h] of the group product of the inverse of view g with view h."""
    grids = [_view_grid(3, number) for number in range(_GROUP_ORDER)]
    product = [[0] * _GROUP_ORDER for _ in range(_GROUP_ORDER)]
    for g, relative in itertools.product(range(_GROUP_ORDER), repeat=2):
        transformed = view(grids[relative][None], g)[0]
        h = next(number for number in range(_GROUP_ORDER) if torch.equal(grids[number], transformed))
        product[g][h] = relative
    return product


class _RotatedKernels(nn.Module):
    """A parametrization that computes all eight orientations of the kernels of a convolution.

    The learned weight is float [K / 8, C, S * S] for the first layer, whose input is an image, and
    [K / 8, C / 8, 8 * S * S] for other layers, whose input is groups of eight maps. The output is [K, C, S, S].
    """

    source_index: Tensor

    def __init__(self, side: int, first: bool) -> None:
        super().__init__()
        relative = [[0] for _ in range(_GROUP_ORDER)] if first else _relative_views()
        cells = side * side
        source_index = [
            relative[g][h] * cells + _view_grid(side, g).flatten()
            for g in range(_GROUP_ORDER)
            for h in range(len(relative[g]))
        ]
        self.register_buffer("source_index", torch.cat(source_index), persistent=False)
        self.side, self.maps = side, len(relative[0])

    def forward(self, weight: Tensor) -> Tensor:
        """Return the kernels [K, C, S, S] of the learned weight."""
        kernels, channels = weight.shape[:2]
        rotated = weight.index_select(2, self.source_index)
        rotated = rotated.reshape(kernels, channels, _GROUP_ORDER, self.maps, self.side, self.side).transpose(1, 2)
        return rotated.reshape(kernels * _GROUP_ORDER, channels * self.maps, self.side, self.side)


class _RepeatedValues(nn.Module):
    """A parametrization that uses one value for all eight channels of a group, along the last dimension."""

    def forward(self, weight: Tensor) -> Tensor:
        """Return the values, each repeated eight times."""
        return weight.repeat_interleave(_GROUP_ORDER, dim=-1)


def _share_weights(model: nn.Module) -> nn.Module:
    """Share the weights among eight orientations, in place. Return the network.

    Args:
        model: a network of convolutions, batch norms and linear layers over pooled maps. The initial shared weights
            are taken from its present weights.
    Raises:
        UsageError: another layer type has weights, or a number of channels is not a multiple of 8.
    """
    for name, layer in list(model.named_modules()):
        parameters = list(layer.parameters(recurse=False))
        if not parameters or isinstance(layer, GeM):  # its exponent is the same for all orientations
            continue
        first = isinstance(layer, nn.Conv2d) and layer.in_channels == 3
        if not _can_share(layer, first):
            shape = tuple(parameters[0].shape)
            found = f"--equivariance is p4m, and {name} is {type(layer).__name__} with weights of {shape}"
            raise UsageError(
                found, "expected convolutions, batch norms and linear layers of 8, 16, 24, ... channels", _P4M_HINT
            )
        if isinstance(layer, nn.Conv2d):
            _share_convolution(layer, first)
        else:
            _repeat_values(layer, "weight")
            if isinstance(layer, nn.BatchNorm2d):
                _repeat_values(layer, "bias")
    return model


def require_symmetric(model: nn.Module, side: int) -> None:
    """Raise an error if the network with shared weights is not equivariant at this input size.

    Raises:
        UsageError: it is not. The hint names the next smaller size that works.
    """
    if _is_equivariant(model, side):
        return
    smaller = next(
        (candidate for candidate in range(side - 1, MIN_SIDE - 1, -1) if _is_equivariant(model, candidate)), None
    )
    hint = f"Give --crop {smaller} and --resolution 0" if smaller else _P4M_HINT
    found = f"--equivariance p4m at {side} pixels: the strides break the symmetry"
    raise UsageError(found, "expected a side that keeps the symmetry", hint)


@torch.inference_mode()
def _is_equivariant(model: nn.Module, side: int) -> bool:
    """Return True if noise of that size gives the same logits as the same noise rotated by 90 degrees."""
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    logits = copy.deepcopy(model).eval()(torch.cat([image, image.rot90(1, (2, 3))]))
    return bool(torch.allclose(logits[0], logits[1], rtol=0, atol=1e-3 * float(logits.abs().max())))


def _can_share(layer: nn.Module, first: bool) -> bool:
    """Return True if `_share_weights` supports the layer."""
    if isinstance(layer, nn.Conv2d):
        square = layer.kernel_size[0] == layer.kernel_size[1]
        divisible = layer.out_channels % _GROUP_ORDER == 0 and (first or layer.in_channels % _GROUP_ORDER == 0)
        return square and divisible and layer.groups == 1 and layer.bias is None
    return isinstance(layer, nn.BatchNorm2d | nn.Linear) and layer.weight.shape[-1] % _GROUP_ORDER == 0


def _share_convolution(layer: nn.Conv2d, first: bool) -> None:
    """Learn one orientation of the kernels instead of all eight, in place."""
    kernels, channels = layer.out_channels // _GROUP_ORDER, layer.in_channels // (1 if first else _GROUP_ORDER)
    layer.weight = nn.Parameter(layer.weight.detach()[:kernels].reshape(kernels, channels, -1).clone())
    parametrize.register_parametrization(layer, "weight", _RotatedKernels(layer.kernel_size[0], first), unsafe=True)


def _repeat_values(layer: Any, name: str) -> None:
    """Learn one value instead of eight along the last dimension, in place."""
    setattr(layer, name, nn.Parameter(getattr(layer, name).detach()[..., ::_GROUP_ORDER].clone()))
    parametrize.register_parametrization(layer, name, _RepeatedValues(), unsafe=True)


def untie_weights(model: nn.Module) -> nn.Module:
    """Return the network with plain weights: the network itself, or a copy if its weights are shared.

    In the copy, the running statistics are equal for all eight channels of a group, to which they converge in training.
    """
    if not any(map(parametrize.is_parametrized, model.modules())):
        return model
    model = copy.deepcopy(model)
    for layer in list(model.modules()):
        if parametrize.is_parametrized(layer):
            _untie_layer(layer)
        if isinstance(layer, nn.BatchNorm2d):
            _average_statistics(layer)
    return model


def _untie_layer(layer: Any) -> None:
    """Replace the shared weights of one layer by plain parameters, in place.

    torch's `remove_parametrizations` would also change the class, which a deep copy shares with its original.
    """
    values = {name: getattr(layer, name).detach() for name in layer.parametrizations}
    layer.__class__ = parametrize.type_before_parametrizations(layer)
    del layer.parametrizations
    for name, value in values.items():
        setattr(layer, name, nn.Parameter(value))


@torch.no_grad()
def _average_statistics(layer: nn.BatchNorm2d) -> None:
    """Replace the running statistics of each group of eight channels by those of the pooled group, in place."""
    mean, variance = (
        value.reshape(-1, _GROUP_ORDER) for value in (layer.running_mean, layer.running_var) if value is not None
    )
    group_mean = mean.mean(1, keepdim=True)
    variance.copy_((variance + (mean - group_mean) ** 2).mean(1, keepdim=True).expand_as(variance))
    mean.copy_(group_mean.expand_as(mean))

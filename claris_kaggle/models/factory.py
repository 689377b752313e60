"""Create networks by name, with their layers, input size and normalisation."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import numpy as np
import torch
import torch.fx
from torch import Tensor, nn

from claris_kaggle.core.config import PATCH_SIZE, POOLINGS, TrainConfig
from claris_kaggle.core.errors import UsageError, first_line
from claris_kaggle.data.augment import STATISTICS
from claris_kaggle.models.densenet import _change_pooling
from claris_kaggle.models.p4m import _share_weights
from claris_kaggle.models.pooling import _GEM, _insert_gem, _timm_pooling, _tiny_pooling
from claris_kaggle.models.sources import _Architecture, _parse_architecture, _pretrained_settings

_CLASS_COUNT = 2
# Errors of timm for arguments and inputs that a network does not take.
_CREATION_ERRORS = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
_FORWARD_ERRORS = (AssertionError, IndexError, RuntimeError, ValueError)
# Standard deviation of the classifier's weights times the square root of its number of inputs: 0.4 to 0.6 in most of
# timm's networks, 13 to 15 in those whose classifier is initialised again.
_MAX_CLASSIFIER_SCALE = 4.0
# Input sizes that are tried, and a network's own, to name those that it accepts.
_TRIED_SIDES = (64, 96, 128, 160, 192, 224, 256, 384)


class _TinyNet(nn.Sequential):
    """A network of 1,450 weights with batch norm and global pooling, for quick trials and tests."""

    num_features = 16  # channels of the last feature map, named as in timm

    def __init__(self, global_pool: str = "", dropout: float = 0.0) -> None:
        pool, factor = _tiny_pooling(global_pool)
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=4, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            pool,
            nn.Sequential(nn.Flatten(), nn.Dropout(dropout)) if dropout else nn.Flatten(),
            nn.Linear(16 * factor, _CLASS_COUNT),
        )

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last feature map, float [B, 16, S / 8, S / 8]. Named as in timm."""
        for part in list(self)[:-3]:
            images = part(images)
        return images

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the logits [B, 2] of the output of `forward_features`."""
        for part in list(self)[-3:]:
            features = part(features)
        return features

    def get_classifier(self) -> nn.Module:
        """Return the last layer. Named as in timm."""
        return self[-1]


def create_model(
    name: str,
    seed: int = 0,
    *,
    stem: str = "pool",
    tail: str = "pool",
    equivariance: str = "none",
    side: int = PATCH_SIZE,
    global_pool: str = "",
    dropout: float = 0.0,
    architecture: str = "",
) -> nn.Module:
    """Create a network with random weights. Its logits are float [B, 2].

    The weights depend only on the name, the seed and the layers.

    Args:
        name: timm's name of the network, `hf-hub:owner/name`, `local-dir:folder`, or `tiny`.
        seed: seed of the random weights.
        stem: `no-pool` removes the first pooling of a DenseNet, `pool4` makes it coarser.
        tail: `no-pool` removes the last pooling between blocks of a DenseNet.
        equivariance: `p4m` shares weights among eight orientations during training. `p4m.untie_weights` returns the
            plain network.
        side: input size in pixels, for networks with a fixed input size, such as most vision transformers.
        global_pool: pooling before the classifier, one of `POOLINGS`; empty for the network's own.
        dropout: dropout rate before the classifier during training; 0 for the network's own.
        architecture: from `sources.read_architecture`: neither folder nor network connection are then needed.
    Raises:
        UsageError: unknown network (the message suggests similar names), a layer that the options need is missing,
            or the network does not accept inputs of that size or that pooling.
        ClarisError: the architecture is not in the local cache and cannot be downloaded.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "tiny":
            model: nn.Module = _TinyNet(global_pool, dropout)
        else:
            parsed = _parse_architecture(name, architecture)
            model = _create_timm_model(name, parsed, side, global_pool=global_pool, dropout=dropout)
    _change_pooling(model, stem=stem, tail=tail)
    return _share_weights(model) if equivariance == "p4m" else model


def network_options(config: TrainConfig) -> dict[str, Any]:
    """Return the options of `create_model` that a config sets, without the name and the seed."""
    names = ("stem", "tail", "equivariance", "side", "global_pool", "dropout", "architecture")
    return {name: getattr(config, name) for name in names}


def trained_network(config: TrainConfig) -> nn.Module:
    """Return a network for the weights of the run's finished folds. Its own weights are random."""
    return create_model(config.model, **{**network_options(config), "equivariance": "none", "dropout": 0.0})


def _create_timm_model(
    name: str, architecture: _Architecture, side: int, *, global_pool: str, dropout: float
) -> nn.Module:
    """Return timm's network for two classes. Its random weights come from torch's global generator.

    Raises:
        UsageError: the network cannot be created for inputs of that size, or with that pooling or dropout.
    """
    size = _size_argument(architecture, side)
    try:
        model = _create_from_timm(architecture, size, global_pool=global_pool, dropout=dropout)
    except _CREATION_ERRORS as error:
        if dropout and _can_create(architecture, size, global_pool=global_pool):
            expected = "this network has no dropout before its classifier"
            raise UsageError(f"--dropout is {dropout:g}", expected, "Give --dropout 0, or another network") from error
        if global_pool and _can_create(architecture, size):
            raise _explain_unsupported_pooling(name, architecture, size, global_pool) from error
        raise _explain_unsupported_side(name, architecture, side) from error
    _reset_large_classifier(model)
    return model


def _reset_large_classifier(model: Any) -> None:
    """Initialise the classifier again with torch's default, in place, if its random logits would be far from 0.

    timm draws the classifier of EfficientNets and MobileNets up to 1 / sqrt(number of classes). This suits 1,000
    classes. With two, the mean loss of the first epoch of Lite0 with ImageNet weights is 3 instead of 0.6, and the AUC
    after ten epochs is lower by 0.02 (docs/recipes.md).
    """
    layer = model.get_classifier()
    if not isinstance(layer, nn.Linear) or layer.weight.is_meta:
        return
    scale = float(layer.weight.detach().std()) * layer.in_features**0.5  # 0.58 with torch's default
    if scale > _MAX_CLASSIFIER_SCALE:
        layer.reset_parameters()


def _size_argument(architecture: _Architecture, side: int) -> dict[str, object]:
    """Return timm's argument for the input size; empty for networks that take any size or already have this one."""
    import timm

    settings = timm.models.get_pretrained_cfg(architecture.name)
    if settings is None or not settings.fixed_input_size:
        return {}
    default_size = architecture.arguments.get("img_size", settings.input_size[-1])
    return {} if default_size in (side, [side, side]) else {"img_size": side}


def _create_from_timm(
    architecture: _Architecture, size: dict[str, object], *, global_pool: str = "", dropout: float = 0.0
) -> nn.Module:
    """Return timm's network for two classes.

    Args:
        architecture: timm's name of the network, and its arguments.
        size: from `_size_argument`.
        global_pool, dropout: as in `create_model`.
    Raises:
        Exception: one of `_CREATION_ERRORS`: the network does not take these arguments.
    """
    import timm

    arguments = architecture.arguments | size
    if dropout:
        arguments["drop_rate"] = dropout
    if global_pool:
        arguments["global_pool"] = _timm_pooling(global_pool)
    model: nn.Module = timm.create_model(architecture.name, pretrained=False, num_classes=_CLASS_COUNT, **arguments)
    if global_pool == _GEM:
        _insert_gem(model)
    return model


def _can_create(architecture: _Architecture, size: dict[str, object], *, global_pool: str = "") -> bool:
    """Return True if timm can create the network with these arguments. Allocates no memory for its weights."""
    try:
        with torch.device("meta"):
            _create_from_timm(architecture, size, global_pool=global_pool)
    except _CREATION_ERRORS:
        return False
    return True


def require_side(model: nn.Module, name: str, side: int, architecture: str = "") -> None:
    """Raise an error unless one forward pass with inputs of `side` x `side` pixels works.

    Args:
        model: the network.
        name: its name, as in `create_model`.
        side: input size in pixels.
        architecture: as in `create_model`.
    Raises:
        UsageError: the forward pass fails, or the network would ignore pixels at the edge. The message names input
            sizes that the network accepts.
    """
    if ignored := side % (size := _patch_size(model)):
        found = f"--model {name} reads pieces of {size} x {size} pixels and would ignore {ignored} of {side} pixel rows"
        nearest = max(size, round(side / size) * size)
        raise UsageError(found, f"expected a multiple of {size}", f"Give --resolution {nearest}, or another network")
    if not _forward_works(model, side):
        raise _explain_unsupported_side(name, _parse_architecture(name, architecture), side)


def _forward_works(model: nn.Module, side: int) -> bool:
    """Return True if one forward pass with inputs of `side` x `side` pixels works."""
    was_training, device = model.training, next(model.parameters()).device
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, 3, side, side, device=device))
    except _FORWARD_ERRORS:
        return False
    finally:
        model.train(was_training)
    return True


def _patch_size(model: nn.Module) -> int:
    """Return the size in pixels of the patches into which the first layer divides the image; 1 if it does not.

    Vision transformers and ConvNeXt begin with such a convolution. It ignores the edge of an image whose side is not a
    multiple of the patch size, unless timm pads the image.
    """
    first = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is None or getattr(getattr(model, "patch_embed", None), "dynamic_img_pad", False):
        return 1
    divides = first.kernel_size == first.stride and first.padding in ((0, 0), 0, "valid")
    return int(first.stride[0]) if divides else 1


def require_trainable(model: nn.Module, name: str, side: int) -> None:
    """Raise an error unless one training step on two patches works: forward, loss and backward.

    The network keeps its gradients and changes its running statistics, so do not use it afterwards.

    Raises:
        UsageError: the step fails, or the network does not return two logits for each patch.
    """
    with torch.random.fork_rng(devices=[]):  # dropout draws random numbers
        try:
            logits = model.train()(torch.zeros(2, 3, side, side))
            nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
        except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            found = f"--model {name} cannot be trained at {side} x {side} pixels ({first_line(error)})"
            raise UsageError(found, "", "Give another network") from error
    if logits.shape != (2, _CLASS_COUNT):
        found = f"--model {name} returns {tuple(logits.shape)} for two patches"
        raise UsageError(found, f"expected {(2, _CLASS_COUNT)}", "Give another network")


def _explain_unsupported_side(name: str, architecture: _Architecture, side: int) -> UsageError:
    """Return the error for a network that does not accept inputs of `side` x `side` pixels."""
    import timm

    found = f"--model {name} does not accept inputs of {side} x {side} pixels"
    settings = timm.models.get_pretrained_cfg(architecture.name)
    own_side = settings.input_size[-1] if settings else _TRIED_SIDES[0]
    tried = sorted({*_TRIED_SIDES, own_side})
    sides = [other for other in tried if other != side and _can_use_side(architecture, other)]
    if not sides:
        return UsageError(found, f"it accepts none of {', '.join(map(str, tried))}", "Give another network")
    nearest = min(sides, key=lambda other: abs(other - side))
    return UsageError(
        found, f"it accepts {', '.join(map(str, sides))}", f"Give --resolution {nearest}, or another network"
    )


def _can_use_side(architecture: _Architecture, side: int) -> bool:
    """Return True if the network can be created for inputs of this size and accepts them. Computes no values."""
    try:
        with torch.device("meta"):
            model = _create_from_timm(architecture, _size_argument(architecture, side))
            return side % _patch_size(model) == 0 and _forward_works(model, side)
    except _CREATION_ERRORS:
        return False


def _explain_unsupported_pooling(
    name: str, architecture: _Architecture, size: dict[str, object], global_pool: str
) -> UsageError:
    """Return the error for a network whose head does not take that pooling."""
    kinds = [kind for kind in POOLINGS if _can_create(architecture, size, global_pool=kind)]
    supported = f"its head takes {', '.join(kinds)}" if kinds else "its head has no pooling to choose"
    return UsageError(
        f"--model {name} with --global-pool {global_pool}", supported, "Give one of these, or no --global-pool"
    )


def fixed_side(name: str) -> int:
    """Return the fixed input size in pixels of the network's published weights, or 0 if they take several sizes."""
    settings = _pretrained_settings(name)
    return settings.input_size[-1] if settings and settings.fixed_input_size else 0


def pretrained_normalisation(name: str) -> str:
    """Return the mean and standard deviation of the network's published weights, as a value of `--normalise`.

    The result is the key of `STATISTICS` with these values, or else the numbers as text. `tiny` and networks without
    published weights use `patches`.

    Raises:
        UsageError: the values are not of three channels, or a deviation is 0.
    """
    settings = _pretrained_settings(name)
    if settings is None:
        return "patches"
    found = f"--normalise model: {name} has mean {settings.mean} and deviation {settings.std}"
    if len(settings.mean) != 3 or len(settings.std) != 3 or min(settings.std) <= 0:
        raise UsageError(found, "expected three channels", f"Give --normalise {', '.join(STATISTICS)}")
    for key, (mean, deviation) in STATISTICS.items():
        if np.allclose(settings.mean, mean, atol=1e-3) and np.allclose(settings.std, deviation, atol=1e-3):
            return key
    return "/".join(",".join(repr(float(number)) for number in part) for part in (settings.mean, settings.std))


def fuse_batch_norm(model: nn.Module) -> nn.Module:
    """Return a copy for inference in which batch norms are fused into the convolution directly before them.

    In timm's DenseNet these are the first norm of the network and the second norm of each dense layer: 59 of the 121
    norms of DenseNet-121. The others come before their convolution and are kept. Other networks are copied unchanged.
    """
    fused = copy.deepcopy(model).eval()
    if type(model).__name__ == "DenseNet":
        layers = [layer for layer in fused.modules() if type(layer).__name__ == "DenseLayer"]
        for parent, conv, norm in [
            (fused.features, "conv0", "norm0"),
            *((layer, "conv1", "norm2") for layer in layers),
        ]:
            setattr(parent, norm, _fuse_pair(getattr(parent, conv), getattr(parent, norm)))
    return fused


class _NormTracer(torch.fx.Tracer):
    """A tracer that keeps every batch norm as one node, also those of timm with an activation."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """Return True if the module is one node of the graph."""
        return isinstance(module, nn.BatchNorm2d) or super().is_leaf_module(module, name)


def fuse_every_batch_norm(model: nn.Module) -> nn.Module:
    """Return a copy for inference in which each batch norm directly after a convolution is fused into it.

    Unlike `fuse_batch_norm` this covers every network that torch.fx can trace, such as ResNets. The logits differ in
    the last digits of float32. A network that cannot be traced is returned as `fuse_batch_norm` returns it.
    """
    fused = fuse_batch_norm(model)
    try:
        nodes = list(_NormTracer().trace(fused).nodes)
    except Exception:  # torch.fx raises different types for control flow that depends on the values
        return fused
    modules = dict(fused.named_modules())
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    for node in nodes:
        previous = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(previous, torch.fx.Node) or previous.op != "call_module" or len(previous.users) != 1:
            continue
        conv, norm = modules[str(previous.target)], modules[str(node.target)]
        called_once = calls[node.target] == calls[previous.target] == 1
        if (
            called_once
            and isinstance(conv, nn.Conv2d)
            and isinstance(norm, nn.BatchNorm2d)
            and norm.running_mean is not None
        ):
            fused.set_submodule(str(node.target), _fuse_pair(conv, norm))
    return fused


def _fuse_pair(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Module:
    """Fuse the norm into the convolution, in place. Return the activation of timm's norm layers, else an identity."""
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    assert norm.running_mean is not None and norm.running_var is not None  # false only without running statistics
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    conv.to(memory_format=torch.channels_last)
    activation: nn.Module = getattr(norm, "act", None) or nn.Identity()
    return activation

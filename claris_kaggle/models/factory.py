"""Create networks by name, and read their settings: input size and normalisation."""

from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import torch
import torch.fx
from torch import Tensor, nn

from claris_kaggle.core.config import PATCH_SIZE, TrainConfig
from claris_kaggle.core.errors import UsageError, first_line, name_few
from claris_kaggle.data.augment import STATISTICS
from claris_kaggle.models.densenet import _change_layout
from claris_kaggle.models.p4m import _share_weights

_CLASS_COUNT = 2


class _TinyNet(nn.Sequential):
    """A network of 1,450 weights with batch norm and global pooling, for quick trials and tests."""

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
) -> nn.Module:
    """Create a network with random weights. Its logits are float [B, 2].

    The weights depend only on the name, the seed and the layers.

    Args:
        name: timm's name of the network, or `tiny`.
        seed: seed of the random weights.
        stem: `no-pool` removes the first pooling of a DenseNet, `pool4` makes it coarser.
        tail: `no-pool` removes the last pooling between blocks of a DenseNet.
        equivariance: `p4m` shares weights among eight orientations during training. `p4m.untie_weights` returns the
            plain network.
        side: input size in pixels, for networks with a fixed input size, such as most vision transformers.
    Raises:
        UsageError: unknown timm model (the message suggests similar names), a layer that the options need is missing,
            or the network does not accept inputs of that size.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _TinyNet() if name == "tiny" else _create_timm_model(name, side)
    _change_layout(model, stem=stem, tail=tail)
    return _share_weights(model) if equivariance == "p4m" else model


def trained_network(config: TrainConfig) -> nn.Module:
    """Return a network, with random weights, that the weights of the run's finished folds fit."""
    return create_model(config.model, stem=config.stem, tail=config.tail, side=config.side)


def _create_timm_model(name: str, side: int) -> nn.Module:
    """Return timm's network for two classes. Its random weights come from torch's global generator.

    Raises:
        UsageError: unknown timm model, or the network cannot be created for inputs of that size.
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
    """Raise an error unless one forward pass with inputs of `side` x `side` pixels works.

    Raises:
        UsageError: the forward pass fails. The message names the input size of the network's published weights.
    """
    was_training = model.training
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, 3, side, side))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _cannot_take(name, side) from error
    finally:
        model.train(was_training)


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


def _cannot_take(name: str, side: int) -> UsageError:
    """Return the error for a network that does not accept inputs of `side` x `side` pixels."""
    import timm

    settings = timm.models.get_pretrained_cfg(name)
    own = settings.input_size[-1] if settings else PATCH_SIZE
    found = f"--model {name} does not accept inputs of {side} x {side} pixels"
    return UsageError(found, f"its own input size is {own}", f"Give --resolution {own}, or another network")


def fixed_side(name: str) -> int:
    """Return the fixed input size in pixels of the network's published weights, or 0 if they take several sizes."""
    import timm

    settings = None if name == "tiny" else timm.models.get_pretrained_cfg(name)
    return settings.input_size[-1] if settings and settings.fixed_input_size else 0


def own_normalisation(name: str) -> str:
    """Return the key of `STATISTICS` with the mean and standard deviation of the network's published weights.

    `tiny` and networks without published weights use `patches`.

    Raises:
        UsageError: no entry of `STATISTICS` has these values.
    """
    import timm

    settings = None if name == "tiny" else timm.models.get_pretrained_cfg(name)
    if settings is None:
        return "patches"
    for key, (mean, deviation) in STATISTICS.items():
        if np.allclose(settings.mean, mean, atol=1e-3) and np.allclose(settings.std, deviation, atol=1e-3):
            return key
    found = f"--normalise model: {name} has mean {settings.mean} and deviation {settings.std}"
    raise UsageError(found, "no name for these values", f"Give --normalise {', '.join(STATISTICS)}")


def _require_known(name: str) -> None:
    """Raise an error if timm has no network of that name.

    Raises:
        UsageError: unknown timm model. The message suggests similar names.
    """
    import timm

    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0][:8]}*")
        known = f"similar names: {name_few(near)}" if near else "try densenet121"
        raise UsageError(f"--model is {name!r}", "unknown timm model", known[0].upper() + known[1:])


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Return a copy for inference in which batch norms are folded into the convolution directly before them.

    In timm's DenseNet these are the first norm of the network and the second norm of each dense layer: 59 of the 121
    norms of DenseNet-121. The others come before their convolution and are kept. Other networks are copied unchanged.
    """
    folded = copy.deepcopy(model).eval()
    if type(model).__name__ == "DenseNet":
        layers = [part for part in folded.modules() if type(part).__name__ == "DenseLayer"]
        for parent, conv, norm in [(folded.features, "conv0", "norm0"), *((part, "conv1", "norm2") for part in layers)]:
            setattr(parent, norm, _fold_pair(getattr(parent, conv), getattr(parent, norm)))
    return folded


class _NormTracer(torch.fx.Tracer):
    """A tracer that keeps every batch norm as one node, also those of timm with an activation."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """Return True if the module is one node of the graph."""
        return isinstance(module, nn.BatchNorm2d) or super().is_leaf_module(module, name)


def fold_every_batch_norm(model: nn.Module) -> nn.Module:
    """Return a copy for inference in which each batch norm directly after a convolution is folded into it.

    Unlike `fold_batch_norm` this covers every network that torch.fx can trace, such as ResNets. The logits differ in
    the last digits of float32. A network that cannot be traced is returned as `fold_batch_norm` returns it.
    """
    folded = fold_batch_norm(model)
    try:
        nodes = list(_NormTracer().trace(folded).nodes)
    except Exception:  # torch.fx raises different types for control flow that depends on the values
        return folded
    modules = dict(folded.named_modules())
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    for node in nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, torch.fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        conv, norm = modules[str(before.target)], modules[str(node.target)]
        once = calls[node.target] == calls[before.target] == 1
        if once and isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            folded.set_submodule(str(node.target), _fold_pair(conv, norm))
    return folded


def _fold_pair(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Module:
    """Fold the norm into the convolution, in place. Return the activation of timm's norm layers, else an identity."""
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    assert norm.running_mean is not None and norm.running_var is not None  # false only without running statistics
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    conv.to(memory_format=torch.channels_last)
    activation: nn.Module = getattr(norm, "act", None) or nn.Identity()
    return activation

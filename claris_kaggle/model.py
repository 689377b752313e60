"""The network by name, with its starting weights or a finished fold's.

Weights come from three places, each said plainly: timm's ImageNet weights over the network, a
local file, or none. Files are never unpickled as code.
"""

from __future__ import annotations

import copy
import logging
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from claris_kaggle.config import SIZE, TrainConfig
from claris_kaggle.console import say
from claris_kaggle.equivariance import share_weights
from claris_kaggle.errors import ClarisError, DataError, UsageError, name_few, one_line
from claris_kaggle.files import explain_disk_errors
from claris_kaggle.layout import lay_out
from claris_kaggle.transforms import STATISTICS

CLASSES = 2
HUB_SECONDS = "10"


class TinyNet(nn.Sequential):
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
            nn.Linear(16, CLASSES),
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
    side: int = SIZE,
) -> nn.Module:
    """A network with random weights that depend on name, seed and layers alone; logits are float [B, 2].

    Args:
        stem: `no-pool` takes DenseNet's first pooling away, `pool4` makes it coarser; for this and the next two see
            `layout.lay_out`.
        tail: `no-pool` takes its last pooling between blocks away.
        pooling: `centre` gives the middle of the last grid half of the weight.
        equivariance: `p4m` shares weights among eight orientations, for training; see `equivariance.plain`.
        side: input size in pixels, for networks that are made for one size, as most vision transformers.
    Raises:
        UsageError: timm has no network of that name (the message has near ones), it has not the layers for this, or
            cannot take inputs of that side.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TinyNet() if name == "tiny" else create_timm_model(name, side)
    lay_out(model, stem=stem, tail=tail, pooling=pooling)
    return share_weights(model) if equivariance == "p4m" else model


def trained_network(config: TrainConfig) -> nn.Module:
    """The network that the weights of a run's finished folds are of."""
    return create_model(config.model, **config.layout, side=config.side)


def create_timm_model(name: str, side: int) -> Any:
    """timm's network of two classes, its random weights drawn from torch's global generator.

    Raises:
        UsageError: timm does not know the name, or the network cannot be made for inputs of that side.
    """
    import timm

    require_known(name)
    settings = timm.models.get_pretrained_cfg(name)
    if settings is None or not settings.fixed_input_size:
        return timm.create_model(name, pretrained=False, num_classes=CLASSES)
    try:
        return timm.create_model(name, pretrained=False, num_classes=CLASSES, img_size=side)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise cannot_take(name, side) from error


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
        raise cannot_take(name, side) from error
    finally:
        model.train(was_training)


def cannot_take(name: str, side: int) -> UsageError:
    """Return the error for a network that does not take inputs of that side."""
    import timm

    settings = timm.models.get_pretrained_cfg(name)
    own = settings.input_size[-1] if settings else SIZE
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


def require_known(name: str) -> None:
    """Refuse a name that timm does not know.

    Raises:
        UsageError: with near ones.
    """
    import timm

    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0][:8]}*")
        known = f"near ones: {name_few(near)}" if near else "densenet121 is the one to begin with"
        raise UsageError(f"--model is {name!r}", "timm knows no network of that name", known[0].upper() + known[1:])


def find_weights(weights: str, model: str) -> Path | None:
    """The file of starting weights: None for `none`, the fetched file for `imagenet`, else the path given.

    Raises:
        UsageError: there is no such file, or timm has no ImageNet weights for this network.
        ClarisError: the weights are not in the local cache and cannot be fetched.
    """
    if weights == "none":
        return None
    if weights != "imagenet":
        path = Path(weights)
        if not path.is_file():
            raise UsageError(f"--weights is {weights}: no such file", "imagenet, none or a file is needed")
        return path
    return fetch_imagenet(model)


def fetch_imagenet(model: str) -> Path:
    """timm's ImageNet weights of the network, from the local cache or over the network."""
    # Bounded: without a network the client would otherwise try for minutes.
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", HUB_SECONDS)
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", HUB_SECONDS)
    import timm

    config = None
    if model != "tiny":
        require_known(model)
        config = timm.models.get_pretrained_cfg(model)
    if config is None or not config.hf_hub_id:
        raise UsageError(f"--weights imagenet: timm has none for {model}", "", "Give --weights none, or a file")
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    # Its retries are not the user's to read; it sets its own level when it is imported.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

    cached = try_to_load_from_cache(config.hf_hub_id, "model.safetensors")
    if isinstance(cached, str):
        return Path(cached)
    say(f"fetching the ImageNet weights of {model}")
    try:
        return Path(hf_hub_download(config.hf_hub_id, "model.safetensors"))
    except Exception as error:  # the client raises a dozen kinds, by version, when there is no network
        raise ClarisError(
            f"--weights imagenet: the weights of {model} are not here and could not be fetched "
            f"({type(error).__name__})",
            "",
            "Give --weights none to begin from random weights, or --weights FILE with weights fetched elsewhere",
        ) from error


def load_start(model: nn.Module, path: Path) -> list[str]:
    """Put starting weights into the network and return the names of layers left as they were.

    Only the classifier may be left out, when the file's has another number of classes.

    Raises:
        DataError: the file is damaged, of another network, or no file of weights.
    """
    found = {rename(key): value for key, value in read_weights(path).items()}
    own = model.state_dict()
    head = {key for key, value in own.items() if value.ndim <= 2 and value.shape[:1] == (CLASSES,)}
    skipped = sorted(key for key in head if key not in found or found[key].shape != own[key].shape)
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    missing = sorted(key for key in own if key not in found and key not in head | counters)
    wrong = sorted(key for key in own if key in found and key not in head and found[key].shape != own[key].shape)
    if missing or wrong:
        what = f"{len(missing)} layers missing, {len(wrong)} of another shape ({name_few(missing + wrong)})"
        raise DataError(f"{path}: {what}", "weights of the same network are needed", "Check --model and --weights")
    model.load_state_dict({key: found[key] for key in own if key in found and key not in skipped}, strict=False)
    return skipped


def rename(key: str) -> str:
    """timm's name of a layer for the names that DataParallel, DDP and older torchvision files use."""
    key = re.sub(r"^(module\.|model\.)+", "", key)
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)", r"\1\2", key)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors in a .safetensors or .pth file by name; nothing in it is run.

    Raises:
        DataError: it is damaged, or no file of weights.
    """
    with explain_disk_errors(path):
        content = path.read_bytes()
    return parse_weights(content, path)


def parse_weights(content: bytes, source: object) -> dict[str, Tensor]:
    """The tensors in the bytes of a .safetensors or .pth file; `source` is for messages."""
    import io

    import safetensors.torch

    try:
        if content[:2] == b"PK" or content[:1] == b"\x80":
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            state = state.get("state_dict", state.get("model", state))
        else:
            state = safetensors.torch.load(content)
        if not state or not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError("no tensors by name")
        return dict(state)
    except Exception as error:  # both readers raise many kinds on damaged files
        found = f"{source}: no readable weights ({one_line(error)})"
        raise DataError(found, "a whole .safetensors or .pth is needed") from error


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """A copy for inference with each batch norm that directly follows a convolution folded into it.

    In timm's DenseNet that is the first norm and the second of each layer, 59 of DenseNet-121's 121; the
    others stand before their convolution, and stay. Other networks are copied as they are.
    """
    folded = copy.deepcopy(model).eval()
    if type(model).__name__ == "DenseNet":
        layers = [part for part in folded.modules() if type(part).__name__ == "DenseLayer"]
        for parent, conv, norm in [(folded.features, "conv0", "norm0"), *((part, "conv1", "norm2") for part in layers)]:
            setattr(parent, norm, fold_pair(getattr(parent, conv), getattr(parent, norm)))
    return folded


def fold_pair(conv: nn.Conv2d, norm: Any) -> nn.Module:
    """Put the norm's affine map into the convolution, in place; returns the activation that timm's norm ends with."""
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    conv.to(memory_format=torch.channels_last)
    activation: nn.Module = norm.act
    return activation

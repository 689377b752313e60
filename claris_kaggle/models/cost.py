"""Estimate the cost of a network: arithmetic, memory of a training step, and hours on Kaggle's two T4 GPUs.

Nothing here is measured on a T4. Arithmetic and activations are counted exactly, on tensors without data. Speeds come
from two linear models, fitted to timm's published speeds (`results/benchmark-*-amp-nhwc-pt112-cu113-rtx3090.csv`: fp16,
channels-last, 224 pixels, RTX 3090). For 13 networks of all kinds, their error is 9 % (root mean square) in training
and 15 % in prediction:

    seconds of training an image   = saved bytes / 80 GB/s  + forward FLOP / 23 TFLOP/s
    seconds of predicting an image = saved bytes / 330 GB/s + forward FLOP / 45 TFLOP/s

"Saved bytes" are the activations that training keeps for the backward pass. They approximate the memory traffic, which
limits the speed of most of these networks. The memory bandwidth of a T4 is 320 GB/s, that of an RTX 3090 is 936 GB/s.
Both terms are scaled by this ratio. The result is about 1,700 images/s for DenseNet-121 at 96 pixels on one T4.

In this module a GFLOP is 1e9 floating-point operations, with two per multiply-add, and a GB is 1e9 bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.models.factory import create_model, network_options, require_side

# Memory of a T4 that a process can use, in GB.
T4_GIGABYTES = 15.0
# Assumed speed of two cards, relative to one.
_TWO_GPU_SPEEDUP = 1.8
_T4_BANDWIDTH_RATIO = 320 / 936
# The two models above: saved bytes per second and forward FLOP per second of an RTX 3090 in fp16.
_TRAINING_SPEEDS, _PREDICTION_SPEEDS = (80e9, 23e12), (330e9, 45e12)
# Tensor cores of a T4 do 65 TFLOP/s in fp16; without them it does 8.1 in fp32.
_FP32_SPEED_RATIO = 8.1 / 65
# Safety margin of the activations, for temporary tensors and fragmentation. With 15 %, no estimate is above the batch
# sizes that timm publishes for a card of 24 GB: 9 of the 13 networks get the same size, 4 the next smaller one.
_ACTIVATION_MARGIN = 1.15
# CUDA context, cuDNN workspace and the like, in GB.
_FIXED_GIGABYTES = 0.75
# Bytes per weight: value, gradient, the two moments of AdamW; EMA copy; fp16 copy under autocast.
_BYTES_PER_WEIGHT, _EMA_BYTES_PER_WEIGHT, _HALF_BYTES_PER_WEIGHT = 16, 4, 2
_COUNTED_BATCH = {"meta": 64, "cpu": 2}
# Functions that CUDA's autocast runs in half precision, and those that it runs in float32. From torch's table
# "CUDA Ops that can autocast", those that occur in image networks.
_FP16_FUNCTIONS = {
    "conv1d", "conv2d", "conv3d", "linear", "matmul", "__matmul__", "bmm", "baddbmm", "mm", "addmm", "einsum",
    "scaled_dot_product_attention",
}  # fmt: skip
_FP32_FUNCTIONS = {"layer_norm", "group_norm", "softmax", "log_softmax", "exp", "log", "pow", "rsqrt", "norm", "cumsum"}


@dataclass(frozen=True, kw_only=True)
class NetworkCost:
    """The cost of one image of a network, at one input size and precision.

    Attributes:
        gflop: of a forward pass, in 1e9 floating-point operations; a multiply-add counts as two.
        saved_megabytes: activations that training keeps for the backward pass, in 1e6 bytes.
        weights: number of trained weights.
        precision: `fp32`, `fp16` or `bf16`.
    """

    gflop: float
    saved_megabytes: float
    weights: int
    precision: str

    def step_gigabytes(self, batch_size: int, *, ema: bool = True, margin: float = _ACTIVATION_MARGIN) -> float:
        """Return the estimated GPU memory of a training step in one process, in 1e9 bytes.

        Counts weights, gradients, the moments of AdamW, the EMA copy, fp16 copies of the weights, activations, and 0.75
        GB for CUDA and cuDNN.

        Args:
            batch_size: images of this process.
            ema: True if an EMA of the weights is kept.
            margin: factor for the activations, for temporary tensors and fragmentation.
        """
        copies = (
            _BYTES_PER_WEIGHT
            + (_EMA_BYTES_PER_WEIGHT if ema else 0)
            + (0 if self.precision == "fp32" else _HALF_BYTES_PER_WEIGHT)
        )
        activations = batch_size * self.saved_megabytes * 1e6 * margin
        return (self.weights * copies + activations) / 1e9 + _FIXED_GIGABYTES

    def largest_batch_size(self, gigabytes: float = T4_GIGABYTES) -> int:
        """Return the largest number of images of one process whose training step fits, or 0 if none fits.

        Args:
            gigabytes: memory of the GPU, in 1e9 bytes.
        """
        free = gigabytes - self.step_gigabytes(0)
        return max(0, int(free * 1e3 / (self.saved_megabytes * _ACTIVATION_MARGIN)))

    def training_rate(self) -> float:
        """Return the estimated training speed of two T4s together, in images per second."""
        return self._rate(_TRAINING_SPEEDS)

    def prediction_rate(self) -> float:
        """Return the estimated prediction speed of two T4s together, in views per second."""
        return self._rate(_PREDICTION_SPEEDS)

    def hours(
        self,
        *,
        train_patches: int,
        epochs: int,
        folds: int,
        views: int,
        predict_patches: int,
        all_folds: int = 5,
    ) -> float:
        """Return the estimated hours of two T4s for training and prediction, as `estimate_hours`.

        Args:
            train_patches, epochs, folds, views, predict_patches: as in `estimate_hours`.
            all_folds: number of folds of the fold file, of which `folds` are trained.
        """
        valid = train_patches / all_folds
        training = folds * epochs * (train_patches - valid) / self.training_rate()
        validation = folds * epochs * valid / self.prediction_rate()
        prediction = folds * views * (valid + predict_patches) / self.prediction_rate()
        return (training + validation + prediction) / 3600

    def _rate(self, speeds: tuple[float, float]) -> float:
        """Return the images per second of two T4s: one image takes the sum of both terms."""
        bytes_per_second, flop_per_second = speeds
        speed_ratio = _FP32_SPEED_RATIO if self.precision == "fp32" else 1.0
        seconds = self.saved_megabytes * 1e6 / bytes_per_second + self.gflop * 1e9 / (flop_per_second * speed_ratio)
        return _TWO_GPU_SPEEDUP * _T4_BANDWIDTH_RATIO / seconds


def forward_gflop(model: str, side: int) -> float:
    """Return the floating-point operations of a forward pass for one image, in 1e9; a multiply-add counts as two.

    Args:
        model: name of the network, as in `create_model`.
        side: input size in pixels.
    Raises:
        UsageError: unknown network, or it does not accept inputs of that size.
    """
    return network_cost(model, side).gflop


def estimate_hours(
    model: str,
    side: int,
    *,
    train_patches: int,
    epochs: int,
    folds: int,
    views: int,
    predict_patches: int,
    precision: str = "fp16",
    stem: str = "pool",
    tail: str = "pool",
) -> float:
    """Return the estimated hours of two T4s for training and prediction.

    It includes the validation after each epoch, the OOF predictions, and the test predictions of each fold. It leaves
    out installing, packing and start-up.

    Args:
        model: name of the network, as in `create_model`.
        side: input size in pixels.
        train_patches: number of labelled patches in all folds; a fold trains on all but its own part.
        epochs: of each fold.
        folds: number of folds to train, of five.
        views: of each prediction of OOF and test.
        predict_patches: number of test patches.
        precision: `fp16`, `bf16` or `fp32`.
        stem, tail: as in `create_model`.
    Raises:
        UsageError: unknown network, or it does not accept inputs of that size.
    """
    cost = network_cost(model, side, precision=precision, stem=stem, tail=tail)
    return cost.hours(
        train_patches=train_patches, epochs=epochs, folds=folds, views=views, predict_patches=predict_patches
    )


def run_cost(config: TrainConfig, precision: str = "fp16") -> NetworkCost:
    """Return the cost of one image of the network of a run.

    Args:
        config: the config of the run.
        precision: as in `network_cost`; `auto` is fp16, the precision of a T4.
    Raises:
        UsageError: unknown network, or it does not accept the input size or an option.
    """
    precision = "fp16" if precision == "auto" else precision
    return network_cost(config.model, precision=precision, **network_options(config))


def run_step_gigabytes(config: TrainConfig, processes: int) -> float:
    """Return the estimated GPU memory of a run's training step in each process, in 1e9 bytes, without safety margin.

    Args:
        config: the config of the run, with its batch size.
        processes: number of processes that share a batch.
    Raises:
        UsageError: as in `run_cost`.
    """
    images = -(-config.batch_size // processes)
    has_average = bool(config.ema or config.swa_epochs)
    return run_cost(config, config.precision).step_gigabytes(images, ema=has_average, margin=1.0)


@functools.cache
def network_cost(
    model: str,
    side: int,
    *,
    precision: str = "fp16",
    **options: Any,
) -> NetworkCost:
    """Return the cost of one image. It is counted in one forward pass over tensors without data, in about a second.

    Args:
        model: name of the network, as in `create_model`.
        side: input size in pixels.
        precision: `fp32`, or `fp16` or `bf16` under autocast as on a GPU.
        options: further options of `create_model`.
    Raises:
        UsageError: unknown network, or it does not accept inputs of that size.
    """
    create = functools.partial(create_model, model, side=side, **options)
    try:
        with torch.device("meta"):
            network = create()
        return _count_cost(network, side, precision, "meta")
    except (AssertionError, NotImplementedError, RuntimeError, ValueError):
        pass  # a layer reads values, which tensors on `meta` do not have, or the network does not accept the size
    network = create()
    require_side(network, model, side, options.get("architecture", ""))
    return _count_cost(network, side, precision, "cpu")


def _count_cost(model: nn.Module, side: int, precision: str, device: str) -> NetworkCost:
    """Count the cost of a network in a forward pass of its training mode, on `device`."""
    batch = _COUNTED_BATCH[device]
    model.train()
    counter = _SavedBytes([*model.parameters(), *model.buffers()])
    images = torch.zeros(batch, 3, side, side, device=device)
    autocast = _Autocast(counter, enabled=precision != "fp32")
    with autocast, saved_tensors_hooks(counter.add, lambda saved: saved), FlopCounterMode(display=False) as flops:
        model(images)
    return NetworkCost(
        gflop=flops.get_total_flops() / batch / 1e9,
        saved_megabytes=counter.total() / batch / 1e6,
        weights=sum(one.numel() for one in model.parameters() if one.requires_grad),
        precision=precision,
    )


class _SavedBytes:
    """The memory of all tensors that are saved for a backward pass, each counted once, without the weights."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self.excluded = {tensor.untyped_storage()._cdata: tensor for tensor in weights}
        self.saved: dict[int, Tensor] = {}

    def exclude(self, tensor: Tensor) -> None:
        """Leave out a tensor, such as a copy of a weight."""
        self.excluded[tensor.untyped_storage()._cdata] = tensor

    def add(self, tensor: Tensor) -> Tensor:
        """Count the memory of a saved tensor. Keeps the tensor, so that no other tensor reuses its memory."""
        self.saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    def total(self) -> int:
        """Return the number of bytes."""
        return sum(tensor.untyped_storage().nbytes() for key, tensor in self.saved.items() if key not in self.excluded)


class _Autocast(TorchFunctionMode):
    """The data types of CUDA's autocast, on any device. torch's own autocast does nothing for tensors on `meta`."""

    def __init__(self, counter: _SavedBytes, *, enabled: bool) -> None:
        super().__init__()
        self.counter, self.enabled = counter, enabled

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call the function with its tensors in the data type that autocast chooses."""
        name = getattr(func, "__name__", "")
        kwargs = dict(kwargs or {})
        if self.enabled and name in _FP16_FUNCTIONS | _FP32_FUNCTIONS:
            dtype = torch.float16 if name in _FP16_FUNCTIONS else torch.float32
            args = tuple(self._convert(value, dtype) for value in args)
            kwargs = {key: self._convert(value, dtype) for key, value in kwargs.items()}
        return func(*args, **kwargs)

    def _convert(self, value: Any, dtype: torch.dtype) -> Any:
        """Return a floating-point tensor in that data type, and any other value as it is."""
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        converted = value.to(dtype)
        if isinstance(value, nn.Parameter):
            self.counter.exclude(converted)
        return converted

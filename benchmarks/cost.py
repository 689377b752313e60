"""Estimate the cost of networks by input size: GFLOP, memory of a training step, and hours of two T4s.

python -m benchmarks.cost
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.timing import QUICK, Grid, publish
from benchmarks.two_t4s import COMPETITION, EPOCHS, FOLDS, VIEWS
from claris_kaggle.core.errors import UsageError
from claris_kaggle.models.cost import _T4_BANDWIDTH_RATIO, _TWO_GPU_SPEEDUP, NetworkCost, network_cost
from claris_kaggle.models.factory import create_model

NETWORKS = (
    ("densenet121", "tiny") if QUICK else (
        "densenet121", "densenet161", "resnet50", "efficientnet_b0", "tf_efficientnet_lite0", "convnext_tiny",
        "convnext_small", "vit_small_r26_s32_224",
    )
)  # fmt: skip
SIDES = (96,) if QUICK else (96, 128, 192, 224)
BATCHES = (64, 128)
COLUMNS = [
    "network, input size", "GFLOP an image", "MB an image kept for the backward pass", "GB at 64 a card",
    "GB at 128 a card", "largest batch a card", "training images/s", "views/s", "hours",
]  # fmt: skip
# Published by timm for 224 pixels on an RTX 3090 (fp16, channels-last, torch 1.12): images per second.
PUBLISHED = {
    "densenet121": (913.65, 2936.15), "densenet161": (399.17, 1366.11), "resnet50": (1218.01, 3676.35),
    "efficientnet_b0": (1751.72, 8015.36), "tf_efficientnet_lite0": (2134.89, 8115.07),
    "convnext_tiny": (819.24, 2379.5), "convnext_small": (487.15, 1452.43), "vit_small_r26_s32_224": (733.9, 1806.33),
}  # fmt: skip
# Speed of two T4s relative to one RTX 3090, as `models.cost` estimates it.
T4S_PER_3090 = _TWO_GPU_SPEEDUP * _T4_BANDWIDTH_RATIO


def format_row(name: str, side: int) -> list[str] | None:
    """Return the cells of a network at an input size, or None if it does not accept that size."""
    try:
        cost = network_cost(name, side)
    except UsageError as error:
        print(error, file=sys.stderr)
        return None
    hours = cost.hours(epochs=EPOCHS, folds=FOLDS, views=VIEWS, **COMPETITION)
    return [
        f"{name}, {side}", f"{cost.gflop:.2f}", f"{cost.saved_megabytes:.1f}",
        *(f"{cost.step_gigabytes(batch):.1f}" for batch in BATCHES), f"{cost.largest_batch_size():,}",
        f"{cost.training_rate():,.0f}", f"{cost.prediction_rate():,.0f}", f"{hours:.1f}",
    ]  # fmt: skip


def compare_to_published() -> str:
    """Return the ratios of the published rates to the estimated ones, as text."""
    texts = []
    for name in NETWORKS:
        if name in PUBLISHED:
            cost: NetworkCost = network_cost(name, 224)
            rates = cost.training_rate() / T4S_PER_3090, cost.prediction_rate() / T4S_PER_3090
            ratios = [published / rate for published, rate in zip(PUBLISHED[name], rates, strict=True)]
            texts.append(f"{name} {ratios[0]:.2f} and {ratios[1]:.2f}")
    return ", ".join(texts)


def measure_saved_megabytes(name: str, side: int, batch: int) -> float:
    """Return the activations that a training step on the CPU saves for its backward pass, in MB per image."""
    model: nn.Module = create_model(name, side=side).train()
    weights = {one.untyped_storage().data_ptr() for one in [*model.parameters(), *model.buffers()]}
    saved: dict[int, Tensor] = {}

    def record(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(record, lambda tensor: tensor):
        model(torch.rand(batch, 3, side, side)).sum().backward()
    return sum(one.untyped_storage().nbytes() for key, one in saved.items() if key not in weights) / batch / 1e6


def main() -> None:
    """Run the benchmark, print the result and save it."""
    rows = [cells for name in NETWORKS for side in SIDES if (cells := format_row(name, side))]
    counted = network_cost("densenet121", 96, precision="fp32").saved_megabytes
    facts = {
        "kept for the backward pass, DenseNet-121 at 96 pixels in fp32": f"{counted:.2f} MB an image counted, "
        f"{measure_saved_megabytes('densenet121', 96, 8):.2f} in a real step of 8 on the CPU",
        "published over estimated images/s in training and prediction, RTX 3090, 224 pixels": compare_to_published(),
    }
    notes = [
        "An estimate for two T4s in fp16, from timm's published speeds on an RTX 3090 scaled by memory bandwidth: "
        f"{FOLDS} folds, {EPOCHS} epochs, OOF and test with {VIEWS} views. Nothing was measured on a T4.",
        "GFLOP of a forward pass; a multiply-add counts as two. Memory of a process with AdamW and EMA, with a margin "
        "of 15 % for the activations; the largest batch is for 15 GB. 1 GB is 1e9 bytes.",
    ]
    title = "cost by network and input size, two T4s (estimated)"
    publish(Grid("cost", title, COLUMNS, rows, facts, notes))


if __name__ == "__main__":
    main()

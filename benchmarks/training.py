"""Compare training steps with different memory formats, optimizers and precisions, and measure the loop's overhead.

python -m benchmarks.training
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import reference
from benchmarks.patches import BenchmarkPatches, prepare_patches
from benchmarks.timing import QUICK, THREADS, Result, interleave, publish, rate_of
from claris_kaggle.core.config import TrainConfig
from claris_kaggle.data.batches import EpochBatches, TrainSet
from claris_kaggle.models.factory import create_model
from claris_kaggle.runtime.distributed import World
from claris_kaggle.training.learner import _Learner, _train_epoch, _train_step

MODEL, BATCH, STEPS = ("tiny", 4, 1) if QUICK else ("densenet121", 32, 4)
ALONE = World(0, 0, 1, torch.device("cpu"))


def new_learner(precision: str) -> _Learner:
    """Return a learner of DenseNet-121 on the CPU."""
    config = TrainConfig(weights="none", epochs=1, batch_size=BATCH, lr=1e-4, color=1.0, precision=precision)
    return _Learner(config, ALONE, create_model(MODEL))


def create_batches(patches: BenchmarkPatches, learner: _Learner) -> EpochBatches:
    """Return the batches of an epoch of a few steps."""
    ids, labels = patches.trainset.ids[: BATCH * STEPS], patches.trainset.labels[: BATCH * STEPS]
    trainset = TrainSet(patches.pack, ids, labels)
    return EpochBatches(trainset, learner.config, epoch=0, rank=0, world_size=1)


def make_contender(patches: BenchmarkPatches, learner: _Learner) -> Callable[[], float]:
    """Return a contender that makes training steps of the learner on batches in memory."""
    batches = [create_batches(patches, learner)[step] for step in range(STEPS)]

    def run_steps() -> None:
        for batch in batches:
            _train_step(learner, batch, 1e-4)

    return rate_of(BATCH * STEPS, run_steps)


def make_reference_contender() -> Callable[[], float]:
    """Return a contender that makes training steps of the reference on a batch in memory."""
    model = reference.create_network().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    images, labels = torch.randn(BATCH, 3, 96, 96), torch.randint(0, 2, (BATCH,))

    def run_steps() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            loss.item()

    return rate_of(BATCH * STEPS, run_steps)


def set_memory_format(learner: _Learner, memory_format: torch.memory_format) -> _Learner:
    """Convert the weights of the learner to a memory format, and return it."""
    learner.model.to(memory_format=memory_format)  # type: ignore[call-overload]
    return learner


def use_fused_optimizer(learner: _Learner) -> _Learner:
    """Give the learner the fused optimizer, and return it."""
    learner.optimizer = torch.optim.AdamW(learner.model.parameters(), lr=0.0, weight_decay=0.0, fused=True)
    return learner


def label_network_parts(learner: _Learner) -> None:
    """Label forward pass, backward pass and update for the profiler."""

    def labelled(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with record_function(name):
                return function(*args, **kwargs)

        return call

    learner.wrapped.forward = labelled("network: forward", learner.wrapped.forward)  # type: ignore[method-assign]
    learner.scaler.step = labelled("network: update", learner.scaler.step)  # type: ignore[method-assign]
    scale = learner.scaler.scale

    def scaled(loss: torch.Tensor) -> Any:
        result = scale(loss)
        result.backward = labelled("network: backward", result.backward)  # type: ignore[union-attr]
        return result

    learner.scaler.scale = scaled  # type: ignore[method-assign, assignment]


def measure_overhead(patches: BenchmarkPatches, precision: str) -> float:
    """Return the share of an epoch that is not forward, backward or update, including loader and augmentation."""
    learner = new_learner(precision)
    batches = create_batches(patches, learner)
    _train_epoch(learner, batches, 0, lambda rows: "")
    learner.step = 0
    label_network_parts(learner)
    with profile(activities=[ProfilerActivity.CPU]) as profiler, record_function("epoch"):
        _train_epoch(learner, batches, 0, lambda rows: "")
    times = {row.key: row.cpu_time_total for row in profiler.key_averages()}
    return 1 - sum(value for name, value in times.items() if name.startswith("network: ")) / times["epoch"]


def main() -> None:
    """Run the benchmark, print the result and save it."""
    torch.set_num_threads(THREADS)
    with prepare_patches() as patches:
        contenders = {
            "reference: torchvision, contiguous, loss read in each step": make_reference_contender(),
            "claris: channels-last, losses read late": make_contender(patches, new_learner("fp32")),
            "claris, contiguous": make_contender(
                patches, set_memory_format(new_learner("fp32"), torch.contiguous_format)
            ),
            "claris, with the fused optimizer": make_contender(patches, use_fused_optimizer(new_learner("fp32"))),
            "claris, bf16": make_contender(patches, new_learner("bf16")),
        }
        rates = interleave(contenders, rounds=5)
        shares = {
            name: [measure_overhead(patches, name) for _ in range(1 if QUICK else 3)] for name in ("fp32", "bf16")
        }
    text = ", ".join(
        f"{name} {statistics.median(each):.1%} ({min(each):.1%} to {max(each):.1%})" for name, each in shares.items()
    )
    facts = {"overhead of the training loop besides forward, backward and update, by torch's profiler": text}
    title = f"training step, DenseNet-121, batch {BATCH}, {THREADS} threads"
    publish(Result("training", title, "images/s", rates, facts))


if __name__ == "__main__":
    main()

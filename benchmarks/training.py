"""A training step in the ways that were tried, and what our loop costs beside the network itself.

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
from benchmarks.patches import Bench, bench_patches
from benchmarks.timing import QUICK, THREADS, Result, interleave, publish, rate_of
from claris_kaggle.core.config import TrainConfig
from claris_kaggle.data.batches import EpochBatches, TrainSet
from claris_kaggle.models.factory import create_model
from claris_kaggle.runtime.distributed import World
from claris_kaggle.training.learner import _Learner, _train_epoch, _train_step

MODEL, BATCH, STEPS = ("tiny", 4, 1) if QUICK else ("densenet121", 32, 4)
ALONE = World(0, 0, 1, torch.device("cpu"))


def new_learner(precision: str) -> _Learner:
    """Our learner of DenseNet-121."""
    config = TrainConfig(weights="none", epochs=1, batch_size=BATCH, lr=1e-4, color=1.0, precision=precision)
    return _Learner(config, ALONE, create_model(MODEL))


def steps_of(bench: Bench, learner: _Learner) -> EpochBatches:
    """A few steps of an epoch."""
    trainset = TrainSet(bench.pack, bench.trainset.ids[: BATCH * STEPS], bench.trainset.labels[: BATCH * STEPS])
    return EpochBatches(trainset, learner.config, epoch=0, rank=0, world_size=1)


def our_steps(bench: Bench, learner: _Learner) -> Callable[[], float]:
    """Training steps on batches that are already exists."""
    batches = [steps_of(bench, learner)[step] for step in range(STEPS)]

    def work() -> None:
        for batch in batches:
            _train_step(learner, batch, 1e-4)

    return rate_of(BATCH * STEPS, work)


def their_steps() -> Callable[[], float]:
    """The reference's steps on tensors that are already exists."""
    model = reference.create().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    images, labels = torch.randn(BATCH, 3, 96, 96), torch.randint(0, 2, (BATCH,))

    def work() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            loss.item()

    return rate_of(BATCH * STEPS, work)


def with_order(learner: _Learner, order: torch.memory_format) -> _Learner:
    """The learner with its weights in another memory order."""
    learner.model.to(memory_format=order)  # type: ignore[call-overload]
    return learner


def with_fused(learner: _Learner) -> _Learner:
    """The learner with the fused optimizer on the CPU."""
    learner.optimizer = torch.optim.AdamW(learner.model.parameters(), lr=0.0, weight_decay=0.0, fused=True)
    return learner


def name_parts(learner: _Learner) -> None:
    """Make the profiler see the network's own parts under names."""

    def named(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def inner(*arguments: Any, **others: Any) -> Any:
            with record_function(name):
                return call(*arguments, **others)

        return inner

    learner.wrapped.forward = named("network: forward", learner.wrapped.forward)  # type: ignore[method-assign]
    learner.scaler.step = named("network: update", learner.scaler.step)  # type: ignore[method-assign]
    scale = learner.scaler.scale

    def scaled(loss: torch.Tensor) -> Any:
        whole = scale(loss)
        whole.backward = named("network: backward", whole.backward)  # type: ignore[union-attr]
        return whole

    learner.scaler.scale = scaled  # type: ignore[method-assign, assignment]


def overhead(bench: Bench, precision: str) -> float:
    """The share of an epoch, loader and augmentation included, that is not forward, backward and update."""
    learner = new_learner(precision)
    batches = steps_of(bench, learner)
    _train_epoch(learner, batches, 0, lambda rows: "")
    learner.step = 0
    name_parts(learner)
    with profile(activities=[ProfilerActivity.CPU]) as found, record_function("epoch"):
        _train_epoch(learner, batches, 0, lambda rows: "")
    times = {row.key: row.cpu_time_total for row in found.key_averages()}
    return 1 - sum(value for name, value in times.items() if name.startswith("network: ")) / times["epoch"]


def main() -> None:
    """Compare, print and keep."""
    torch.set_num_threads(THREADS)
    with bench_patches() as bench:
        contenders = {
            "reference: torchvision, contiguous, loss read in each step": their_steps(),
            "claris: channels-last, losses read late": our_steps(bench, new_learner("fp32")),
            "claris, contiguous": our_steps(bench, with_order(new_learner("fp32"), torch.contiguous_format)),
            "claris, with the fused optimizer": our_steps(bench, with_fused(new_learner("fp32"))),
            "claris, bf16": our_steps(bench, new_learner("bf16")),
        }
        rates = interleave(contenders, rounds=5)
        shares = {name: [overhead(bench, name) for _ in range(1 if QUICK else 3)] for name in ("fp32", "bf16")}
    text = ", ".join(
        f"{name} {statistics.median(each):.1%} ({min(each):.1%} to {max(each):.1%})" for name, each in shares.items()
    )
    facts = {"overhead of the training loop besides forward, backward and update, by torch's profiler": text}
    title = f"training step, DenseNet-121, batch {BATCH}, {THREADS} threads"
    publish(Result("training", title, "images/s", rates, facts))


if __name__ == "__main__":
    main()

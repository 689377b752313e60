"""Record CUDA graphs of a forward pass and of a complete training step. On a CPU the functions run directly."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor

import claris_kaggle.training.learner
from claris_kaggle.data.batches import Batch
from claris_kaggle.training.learner import _Learner, _parameter_groups, _train_step

WARM_UP = 3


def record(function: Callable[[], object]) -> Callable[[], None]:
    """Call the function a few times on a separate stream, record it, and return a function that replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def capture_forward(forward: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[Tensor], Tensor]:
    """Record `forward` for images of one shape.

    Args:
        forward: function that computes on the device only.
        images: example images on the device.
    Returns:
        A function of images of that shape. Each call overwrites the result of the previous one.
    """
    if not images.is_cuda:
        return forward
    static = images.clone()
    output: list[Tensor] = []

    def run_forward() -> None:
        output[:] = [forward(static)]

    replay = record(run_forward)

    def run(images: Tensor) -> Tensor:
        static.copy_(images, non_blocking=True)
        replay()
        result: Tensor = output[0]
        return result

    return run


def capture_step(learner: _Learner, batch: Batch, lr: float) -> Callable[[Batch], None]:
    """Record `_train_step` for batches of one size and one learning rate. This takes a few training steps.

    Options with random draws on the host in each step (mixup, EMA) must be off: a graph repeats the draws of
    the recorded step.
    """
    device = learner.world.device
    if device.type != "cuda":
        return lambda batch: _train_step(learner, batch, lr)
    rate = torch.tensor(lr, device=device)
    learner.optimizer = torch.optim.AdamW(
        _parameter_groups(learner.model, learner.config), lr=rate, fused=True, capturable=True
    )
    static = batch.map(lambda part: part.to(device).clone())
    # CUDA allows no seeding of generators while it records. These networks have no dropout.
    with mock.patch.object(claris_kaggle.training.learner, "_step_generator", lambda learner: contextlib.nullcontext()):
        replay = record(lambda: _train_step(learner, static, rate))  # type: ignore[arg-type]

    def run(batch: Batch) -> None:
        for target, part in zip(static[:5], batch[:5], strict=True):
            target.copy_(part, non_blocking=True)
        replay()

    return run

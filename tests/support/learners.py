"""A small learner on generated patches, and losses that are set to NaN."""

from __future__ import annotations

import pytest
import torch

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.data.batches import EpochBatches, TrainSet
from claris_kaggle.models.factory import create_model
from claris_kaggle.runtime.distributed import World
from claris_kaggle.training import learner as learner_module
from claris_kaggle.training.learner import _Learner

ALONE = World(0, 0, 1, torch.device("cpu"))


def new_learner(seed: int = 0) -> _Learner:
    config = TrainConfig(model="tiny", weights="none", epochs=1, batch_size=40, lr=1e-3, color=0.3, precision="fp32")
    return _Learner(config, ALONE, create_model("tiny", seed))


def batches_of(trainset: TrainSet) -> EpochBatches:
    return EpochBatches(trainset, new_learner().config, epoch=0, rank=0, world_size=1)


def spoil(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Give the loss of these steps, counted over all calls, no value."""
    whole, seen = learner_module.functional.cross_entropy, [0]

    def spoiled(*arguments: object, **named: object) -> torch.Tensor:
        seen[0] += 1
        loss = whole(*arguments, **named)  # type: ignore[arg-type]
        return loss * float("nan") if seen[0] in steps else loss

    monkeypatch.setattr(learner_module.functional, "cross_entropy", spoiled)

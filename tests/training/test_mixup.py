"""Test mixup: it mixes patches and labels alike, and a step always draws the same weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.data.batches import Batch
from claris_kaggle.models.factory import create_model
from claris_kaggle.runtime.distributed import World
from claris_kaggle.training.learner import _augment_batch, _Learner, _mixup_weight, _train_step

ALONE = World(0, 0, 1, torch.device("cpu"))


class Seen(nn.Module):
    """A network that keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.images = nn.Linear(3, 2), torch.empty(0)

    def forward(self, images: Tensor) -> Tensor:
        self.images = images.detach()
        return self.linear(images.mean((2, 3)))


def a_batch(size: int = 6) -> Batch:
    """A step of patches that are turned by no one."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 96, 96, 3), generator=generator, dtype=torch.uint8)
    labels = torch.arange(size) % 2
    none = torch.zeros(size, 6)
    return Batch(images, torch.empty(0, dtype=torch.int64), labels, none, none, float(size))


def config(**changes: float) -> TrainConfig:
    return TrainConfig(model="tiny", weights="none", precision="fp32", batch_size=6, **changes)  # type: ignore[arg-type]


def test_mixup_mixes_patches_and_the_loss_of_their_labels_by_the_same_share() -> None:
    learner, plain = _Learner(config(mixup=1.0), ALONE, Seen()), _Learner(config(), ALONE, Seen())
    plain.model.load_state_dict(learner.model.state_dict())
    batch, share = a_batch(), _mixup_weight(0, 0, 1.0)
    whole = _augment_batch(plain, batch)
    mixed = share * whole + (1 - share) * whole.flip(0)
    logits = plain.model(mixed).detach()
    losses = [functional.cross_entropy(logits, labels) for labels in (batch.labels, batch.labels.flip(0))]
    _train_step(learner, batch, 0.0)
    assert torch.allclose(learner.model.images, mixed, atol=1e-5)  # type: ignore[arg-type]
    assert learner.loss_sum.item() == pytest.approx(float(share * losses[0] + (1 - share) * losses[1]), abs=1e-6)


def test_a_step_draws_the_same_mixup_weight_whatever_was_drawn_before() -> None:
    made = []
    for disturbed in (False, True):
        learner = _Learner(config(mixup=0.4), ALONE, create_model("tiny"))
        for _ in range(2):
            if disturbed:
                torch.rand(7)
                np.random.rand(7)
            _train_step(learner, a_batch(4), 1e-3)
        made.append(torch.cat([one.flatten() for one in learner.model.state_dict().values()]))
    assert torch.equal(*made)

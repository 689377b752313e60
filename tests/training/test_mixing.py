"""Mixed patches and left-out layers: what they do, and that a step draws the same whenever it is taken."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.errors import UsageError
from claris_kaggle.data.batches import Batch
from claris_kaggle.models.factory import create_model
from claris_kaggle.runtime.distributed import World
from claris_kaggle.training.learner import _augment_batch, _Learner, _train_step
from claris_kaggle.training.mixing import _drop_layer_output, _has_surroundings_mixed, _mix_surroundings, _mixup_share
from claris_kaggle.training.setup import _new_network

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
    batch, share = a_batch(), _mixup_share(0, 0, 1.0)
    whole = _augment_batch(plain, batch)
    mixed = share * whole + (1 - share) * whole.flip(0)
    logits = plain.model(mixed).detach()
    losses = [functional.cross_entropy(logits, labels) for labels in (batch.labels, batch.labels.flip(0))]
    _train_step(learner, batch, 0.0)
    assert torch.allclose(learner.model.images, mixed, atol=1e-5)  # type: ignore[arg-type]
    assert learner.loss_sum.item() == pytest.approx(float(share * losses[0] + (1 - share) * losses[1]), abs=1e-6)


def test_mixed_surroundings_keep_the_labelled_middle_and_every_pixel_of_the_rest() -> None:
    images = a_batch(5).images
    mixed = _mix_surroundings(images)
    inside = torch.zeros(96, 96, dtype=torch.bool)
    inside[32:64, 32:64] = True
    assert torch.equal(mixed[:, inside], images[:, inside])
    assert torch.equal(mixed[:, ~inside], images.flip(0)[:, ~inside])


def test_the_share_of_steps_with_mixed_surroundings_is_the_one_asked_for() -> None:
    drawn = [_has_surroundings_mixed(3, step, 0.3) for step in range(2000)]
    assert np.mean(drawn) == pytest.approx(0.3, abs=0.04)  # four standard errors
    assert not any(_has_surroundings_mixed(3, step, 0.0) for step in range(100))


def test_a_left_out_layer_is_zero_for_whole_patches_in_training_and_there_in_evaluation() -> None:
    layer, output = nn.Identity(), torch.ones(1000, 2, 3, 3)
    torch.manual_seed(0)
    given = _drop_layer_output(layer.train(), (), output, share=0.25)
    gone = (given == 0).flatten(1)
    assert bool((gone.all(1) | ~gone.any(1)).all())
    assert gone[:, 0].float().mean().item() == pytest.approx(0.25, abs=0.055)
    assert torch.equal(_drop_layer_output(layer.eval(), (), output, share=0.25), output)


@pytest.mark.parametrize("changes", [{"mixup": 0.4}, {"cutmix": 0.5}, {"drop_path": 0.3}])
def test_a_step_draws_the_same_whenever_it_is_taken(changes: dict[str, float]) -> None:
    made = []
    for disturbed in (False, True):
        settings = TrainConfig(model="densenet121", weights="none", precision="fp32", resolution=32, **changes)  # type: ignore[arg-type]
        learner = _Learner(settings, ALONE, _new_network(settings))
        for _ in range(2):
            if disturbed:
                torch.rand(7)
            _train_step(learner, a_batch(4), 1e-3)
        made.append(learner.model.state_dict()["classifier.weight"])
    assert torch.equal(*made)
    assert set(learner.model.state_dict()) == set(create_model("densenet121").state_dict())


def test_layers_can_be_left_out_of_a_densenet_only() -> None:
    with pytest.raises(UsageError, match=r"--drop-path is 0\.2; only a DenseNet.*--drop-path 0"):
        _new_network(config(drop_path=0.2))

"""Test the options of fine-tuning: input size, normalisation, learning rates by layer, frozen layers."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import timm
import torch

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.errors import UsageError
from claris_kaggle.data.augment import STATISTICS, _resize, to_input
from claris_kaggle.data.batches import Batch
from claris_kaggle.models.factory import create_model, pretrained_normalisation
from claris_kaggle.runtime.distributed import World
from claris_kaggle.training.learner import _Learner, _parameter_groups, _train_step

ALONE = World(0, 0, 1, torch.device("cpu"))
HEAD = ("8.weight", "8.bias")  # of the tiny network


def make_learner(**options: Any) -> _Learner:
    settings = TrainConfig(model="tiny", weights="none", precision="fp32", **options)
    return _Learner(settings, ALONE, create_model("tiny", 1))


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 96, 96, 3), dtype=torch.uint8, generator=generator)
    return Batch(images, torch.empty(0), torch.arange(8) % 2, torch.zeros(8, 6), torch.zeros(8, 6), 8.0)


def changes_after_a_step(learner: _Learner, lr: float = 1e-3) -> dict[str, torch.Tensor]:
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    _train_step(learner, make_batch(), lr)
    return {name: (value - before[name]).abs() for name, value in learner.model.state_dict().items()}


@pytest.mark.parametrize("side", [97, 128, 224, 384])
def test_enlarging_interpolates_a_ramp_exactly_and_keeps_its_range(side: int) -> None:
    ramp = torch.arange(96.0).expand(1, 1, 96, 96)
    done = _resize(ramp, side)
    places = (torch.arange(side) + 0.5) * 96 / side - 0.5
    torch.testing.assert_close(done[0, 0, 0], places.clamp(0, 95), atol=1e-4, rtol=0)
    assert done.shape == (1, 1, side, side)


def test_enlarging_commutes_with_the_symmetries_of_the_square() -> None:
    images = torch.rand(2, 3, 96, 96)
    for change in (lambda x: x.flip(2), lambda x: x.flip(3), lambda x: x.rot90(1, (2, 3))):
        torch.testing.assert_close(change(_resize(images, 192)), _resize(change(images), 192), atol=1e-5, rtol=0)


def test_input_keeps_channels_last_memory_when_enlarged() -> None:
    images = torch.randint(0, 256, (2, 96, 96, 3), dtype=torch.uint8)
    assert to_input(images, "imagenet", resolution=128).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["densenet121", "tf_efficientnet_lite0", "vit_tiny_patch16_224"])
def test_normalise_model_takes_the_statistics_of_the_published_weights(name: str) -> None:
    settings = timm.models.get_pretrained_cfg(name)
    assert settings is not None
    np.testing.assert_allclose(STATISTICS[pretrained_normalisation(name)], (settings.mean, settings.std), atol=1e-3)


def test_a_network_of_fixed_size_is_made_for_the_input_size() -> None:
    model = create_model("vit_tiny_patch16_224", side=96).eval()
    assert model(torch.zeros(1, 3, 96, 96)).shape == (1, 2)


def test_a_network_with_several_classifiers_learns_faster_in_each_of_them() -> None:
    model = create_model("levit_128s", side=224)
    groups = _parameter_groups(model, TrainConfig(weights="none", lr_head=5.0, layer_decay=0.8))
    fast = {id(parameter) for group in groups if group["lr_scale"] == 5.0 for parameter in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in fast}
    assert names == {name for name, _ in model.named_parameters() if name.startswith(("head.", "head_dist."))}


def test_the_classifier_alone_learns_faster_by_its_factor() -> None:
    plain, fast = (changes_after_a_step(make_learner(lr_head=factor)) for factor in (1.0, 10.0))
    for name, change in plain.items():
        expected = 10 * change if name in HEAD else change
        torch.testing.assert_close(fast[name], expected, rtol=1e-3, atol=1e-7)


def test_layer_decay_gives_each_layer_less_than_the_one_after_it() -> None:
    model = create_model("tf_efficientnet_lite0")
    groups = _parameter_groups(model, TrainConfig(weights="none", layer_decay=0.8, lr_head=5.0, weight_decay=0.05))
    scales = {id(one): group["lr_scale"] for group in groups for one in group["params"]}
    decays = {id(one): group["weight_decay"] for group in groups for one in group["params"]}
    parameters = dict(model.named_parameters())
    assert sorted(scales) == sorted(id(one) for one in parameters.values())
    first, last = scales[id(parameters["conv_stem.weight"])], scales[id(parameters["conv_head.weight"])]
    assert first < 0.3 * last and last <= 1 and scales[id(parameters["classifier.weight"])] == pytest.approx(5)
    assert decays[id(parameters["conv_stem.weight"])] == 0.05 and decays[id(parameters["bn1.weight"])] == 0


def test_frozen_epochs_change_the_classifier_alone_and_no_running_statistics() -> None:
    learner = make_learner(freeze_epochs=1, epochs=2, weight_decay=0.05)
    changed = {name for name, change in changes_after_a_step(learner).items() if change.any()}
    assert changed == set(HEAD)
    learner.epoch = 1
    changed = {name for name, change in changes_after_a_step(learner).items() if change.any()}
    assert changed == set(learner.model.state_dict())


def test_a_learner_restored_among_frozen_epochs_continues_alike() -> None:
    whole, resumed = (make_learner(freeze_epochs=1, epochs=2, lr_head=3.0) for _ in range(2))
    changes_after_a_step(whole)
    resumed.restore(copy.deepcopy(whole.state()))  # as from a file
    for learner in (whole, resumed):
        changes_after_a_step(learner)
        learner.epoch = 1
        changes_after_a_step(learner)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_clipped_gradient_has_the_norm_that_was_asked_for() -> None:
    learner = make_learner(clip_grad=0.01)
    changes_after_a_step(learner)
    norm = torch.stack([one.grad.norm() for one in learner.model.parameters() if one.grad is not None]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)


def test_frozen_epochs_must_leave_one_to_train_all_layers() -> None:
    with pytest.raises(UsageError, match="--freeze-epochs is 2 and --epochs 2"):
        TrainConfig(epochs=2, freeze_epochs=2)

"""Test stochastic weight averaging: the learning rate, the average, its batch norms, and kills."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from claris_kaggle.cli.main import main
from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.errors import UsageError
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data.batches import EpochBatches, TrainSet
from claris_kaggle.data.prepare import get_pack
from claris_kaggle.data.tables import read_labels
from claris_kaggle.models.factory import create_model
from claris_kaggle.training.checkpoint import _CheckpointWriter
from claris_kaggle.training.learner import (
    _augment_batch,
    _Learner,
    _learning_rate,
    _recompute_statistics,
    _train_epoch,
)
from tests.conftest import TINY
from tests.support.learners import ALONE, new_learner
from tests.support.runs import places

OPTIONS = [
    "--epochs",
    "4",
    "--swa-epochs",
    "2",
    "--freeze-epochs",
    "1",
    "--layer-decay",
    "0.8",
    "--lr-head",
    "3",
    "--ema",
    "0",
]


@pytest.fixture(scope="module")
def trained(generated: DataDir, cache: Path) -> tuple[_Learner, EpochBatches, list[dict[str, torch.Tensor]]]:
    """A learner after two SWA epochs, the batches of the last, and the weights at the end of each."""
    ids, labels = read_labels(generated.labels)
    trainset = TrainSet(get_pack(generated, "train", ids, cache, verified=True), ids, labels.astype(np.int64))
    config = dataclasses.replace(new_learner().config, epochs=3, swa_epochs=2)
    learner, ends = _Learner(config, ALONE, create_model("tiny", 0)), []
    for epoch in range(3):
        learner.epoch, learner.step = epoch, 0
        batches = EpochBatches(trainset, config, epoch=epoch, rank=0, world_size=1)
        _train_epoch(learner, batches, 0, lambda rows: "")
        assert not learner.swa_is_complete and learner.predictor is learner.model
        for _ in range(2):  # a stop after the average was updated repeats the call
            learner.add_epoch_to_swa()
        ends.append({name: value.detach().clone() for name, value in learner.model.named_parameters()})
    assert learner.swa is not None
    _recompute_statistics(learner, learner.swa.module, batches, 0)
    return learner, batches, ends[1:]


def test_the_learning_rate_decays_before_the_swa_epochs_and_is_constant_in_them() -> None:
    config = TrainConfig(epochs=10, lr=1e-3)
    averaged = dataclasses.replace(config, epochs=15, swa_epochs=5, swa_lr=0.3)
    rates = [_learning_rate(step, 15 * 7, averaged) for step in range(15 * 7)]
    assert rates[:70] == [_learning_rate(step, 70, config) for step in range(70)]
    assert rates[70:] == [pytest.approx(3e-4)] * 35


def test_the_average_of_the_last_epochs_predicts(trained: Any) -> None:
    learner, _, ends = trained
    assert learner.swa_is_complete and learner.predictor is learner.swa.module
    for name, value in learner.predictor.named_parameters():
        torch.testing.assert_close(value, (ends[0][name] + ends[1][name]) / 2)


def test_batch_norms_of_the_average_have_the_statistics_of_its_own_activations(trained: Any) -> None:
    learner, batches, _ = trained
    layers = list(learner.predictor.children())
    place = next(number for number, layer in enumerate(layers) if isinstance(layer, nn.BatchNorm2d))
    before, steps = nn.Sequential(*layers[:place]), map(batches.__getitem__, range(len(batches)))
    with torch.no_grad():
        values = [before(_augment_batch(learner, batch)) for batch in steps]
    norm = layers[place]
    torch.testing.assert_close(norm.running_mean, torch.stack([one.mean((0, 2, 3)) for one in values]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([one.var((0, 2, 3)) for one in values]).mean(0))
    assert not torch.equal(norm.running_mean, list(learner.model.children())[place].running_mean)
    assert norm.momentum == list(learner.model.children())[place].momentum


def test_the_statistics_are_of_inputs_in_float32_as_in_training(trained: Any) -> None:
    learner, batches, _ = trained
    network, seen = create_model("tiny"), []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    lower = copy.copy(learner)
    lower.config = dataclasses.replace(learner.config, precision="bf16", color=1.0, stain=0.1)
    _recompute_statistics(lower, network, batches, 0)
    assert len(seen) == len(batches)
    for number, inputs in enumerate(seen):
        assert torch.equal(inputs, _augment_batch(lower, batches[number]))


class _Killed(BaseException):
    """An end of the process that nothing handles."""


def test_a_run_killed_after_every_checkpoint_ends_with_the_same_weights(
    generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def arguments(name: str) -> list[str]:
        where = places(generated, cache, tmp_path / name)
        return ["train", *where, "--folds", str(fold_file), *TINY, *OPTIONS, "--fold", "0"]

    save, seen = _CheckpointWriter.save, set()

    def save_and_die(writer: _CheckpointWriter, state: dict[str, Any]) -> None:
        save(writer, state)
        place = (state["epoch"], state["step"])
        if place not in seen:
            seen.add(place)
            raise _Killed

    assert main(arguments("whole")) == 0
    monkeypatch.setattr(_CheckpointWriter, "save", save_and_die)
    for _ in range(2 * 4):  # before and after the validation of each epoch
        with pytest.raises(_Killed):
            main(arguments("killed"))
    assert main(arguments("killed")) == 0
    whole, killed = (RunDir(tmp_path / name).fold(0) for name in ("whole", "killed"))
    assert killed.weights.read_bytes() == whole.weights.read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"swa_epochs": 6}, "--swa-epochs is 6 and --epochs 6; the schedule needs at least one epoch before them"),
        ({"swa_epochs": 2, "ema": 0.9}, "--swa-epochs is 2 with --ema 0.9; expected one kind of average"),
        ({"swa_epochs": 2, "select": "best"}, "--swa-epochs is 2 with --select best"),
    ],
)
def test_options_that_swa_excludes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig(**options)

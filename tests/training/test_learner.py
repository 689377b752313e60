"""Test training steps: losses and gradients that are NaN or infinite, the moving average, and the rollback."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from claris_kaggle.cli.main import main
from claris_kaggle.core.errors import Stopped
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data.batches import Batch, EpochBatches, TrainSet
from claris_kaggle.data.prepare import get_pack
from claris_kaggle.data.tables import read_labels
from claris_kaggle.models.factory import create_model
from claris_kaggle.training import learner as learner_module
from claris_kaggle.training.learner import _Diverged, _Learner, _train_epoch, _train_step
from tests.conftest import TINY
from tests.support.learners import ALONE, batches_of, new_learner, spoil
from tests.support.runs import (
    places,
)


@pytest.fixture
def trainset(generated: DataDir, cache: Path) -> TrainSet:
    ids, labels = read_labels(generated.labels)
    return TrainSet(get_pack(generated, "train", ids, cache, verified=True), ids, labels.astype(np.int64))


def test_a_step_without_a_finite_loss_is_skipped_and_counted(
    trainset: TrainSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = new_learner()
    spoil(monkeypatch, {3})
    before: list[dict[str, torch.Tensor]] = []

    def between(rows: int) -> str:
        before.append({name: value.detach().clone() for name, value in learner.model.named_parameters()})
        return ""

    loss = _train_epoch(learner, batches_of(trainset), 0, between)
    assert np.isfinite(loss) and int(learner.skipped_steps) == 1 and len(before) == 6
    assert all(torch.equal(before[1][name], before[2][name]) for name in before[1])
    assert not all(torch.equal(before[2][name], before[3][name]) for name in before[1])


def test_many_such_steps_in_a_row_are_an_error(trainset: TrainSet, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, set(range(2, 7)))
    with pytest.raises(_Diverged, match="the loss or its gradients are NaN or infinite"):
        _train_epoch(new_learner(), batches_of(trainset), 0, lambda rows: "")


@pytest.mark.parametrize(("resumed", "step"), [(False, 0), (False, 2), (True, 6)])
def test_an_infinity_in_a_forward_pass_does_not_stay_in_the_running_statistics(
    trainset: TrainSet, monkeypatch: pytest.MonkeyPatch, resumed: bool, step: int
) -> None:
    config = dataclasses.replace(new_learner().config, ema=0.9)
    learner, whole = _Learner(config, ALONE, create_model("tiny")), learner_module._augment_batch
    if resumed:
        _train_epoch(learner, batches_of(trainset), 0, lambda rows: "")
        checkpoint, learner = learner.state(), _Learner(config, ALONE, create_model("tiny"))
        learner.restore({**checkpoint, "step": 0})

    def spoiled(learner: _Learner, batch: Batch) -> torch.Tensor:
        return whole(learner, batch) * (float("inf") if learner.global_step == step else 1)

    monkeypatch.setattr(learner_module, "_augment_batch", spoiled)
    _train_epoch(learner, batches_of(trainset), 0, lambda rows: "")
    assert int(learner.skipped_steps) == 1
    for state in (learner.state()["model"], learner.state()["average"]):
        assert all(bool(torch.isfinite(value).all()) for value in state.values())


def test_the_memory_of_a_learner_is_free_without_a_garbage_collection(trainset: TrainSet) -> None:
    batches = batches_of(trainset)
    _train_step(new_learner(), batches[0], 1e-3)  # torch's first optimizer step imports its compiler
    gc.collect()
    gc.disable()
    try:
        learner = new_learner()
        _train_step(learner, batches[0], 1e-3)
        parts = [weakref.ref(part) for part in (learner.model, learner.optimizer, next(learner.model.parameters()))]
        assert learner.updates == 1
        del learner
        assert [part() for part in parts] == [None] * 3
    finally:
        gc.enable()


def test_steps_whose_gradients_are_no_numbers_are_an_error_in_the_end(
    trainset: TrainSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner_module, "_MAX_STEPS_WITHOUT_UPDATE", 3)
    learner = new_learner()
    next(learner.model.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(_Diverged, match=r"step 4: the loss or its gradients are NaN or infinite"):
        _train_epoch(learner, batches_of(trainset), 0, lambda rows: "")
    assert int(learner.skipped_steps) == 0


def test_a_moving_average_is_in_the_checkpoint_and_predicts(trainset: TrainSet) -> None:
    def averaged() -> _Learner:
        return _Learner(dataclasses.replace(new_learner().config, ema=0.9), ALONE, create_model("tiny", 0))

    whole, first, rest = averaged(), averaged(), averaged()
    batches = EpochBatches(trainset, whole.config, epoch=0, rank=0, world_size=1)
    _train_epoch(whole, batches, 0, lambda rows: "")
    with pytest.raises(Stopped):
        _train_epoch(first, batches, 0, lambda rows: "enough" if first.step == 3 else "")
    rest.restore(first.state())
    _train_epoch(rest, batches, 0, lambda rows: "")
    for one, other in zip(whole.predictor.state_dict().values(), rest.predictor.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert whole.predictor is not whole.model
    weights = [next(part.parameters()) for part in (whole.predictor, whole.model)]
    assert not torch.equal(*weights)


def test_a_fold_that_returns_to_its_checkpoint_ends_with_the_same_bytes(
    generated: DataDir, cache: Path, fold_file: Path, finished: RunDir, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip

    arguments = ["train", *places(generated, cache, tmp_path / "run"), "--folds", str(fold_file), *TINY, "--fold", "0"]
    # In the second epoch, which the checkpoint of the first precedes. The check before training is one more call.
    spoil(monkeypatch, set(range(7, 12)))
    assert main(arguments) == 0
    assert "returning to the last checkpoint" in capsys.readouterr().err
    assert (tmp_path / "run/fold0/model.safetensors").read_bytes() == finished.fold(0).weights.read_bytes()


def test_dropout_is_the_same_after_a_resume(trainset: TrainSet) -> None:
    config = dataclasses.replace(new_learner().config, dropout=0.5)
    batches = EpochBatches(trainset, config, epoch=0, rank=0, world_size=1)

    def new() -> _Learner:
        return _Learner(config, ALONE, create_model("tiny", dropout=config.dropout))

    whole, stopped, resumed = new(), new(), new()
    _train_epoch(whole, batches, 0, lambda rows: "")
    with pytest.raises(Stopped):
        _train_epoch(stopped, batches, 0, lambda rows: "a test" if stopped.step == 2 else "")
    resumed.restore(stopped.state())
    torch.rand(7)  # a new process has another state
    _train_epoch(resumed, batches, 0, lambda rows: "")
    assert all(torch.equal(value, resumed.model.state_dict()[key]) for key, value in whole.model.state_dict().items())

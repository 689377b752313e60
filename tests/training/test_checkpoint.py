"""Test checkpoints: the state of one moment, written while training continues."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from claris_kaggle.core.errors import DiskError
from claris_kaggle.models.factory import create_model
from claris_kaggle.training.checkpoint import _CheckpointWriter, _load_checkpoint
from claris_kaggle.training.learner import _Learner
from tests.support.learners import ALONE, new_learner


def test_a_checkpoint_of_another_device_keeps_this_ones_way_to_update() -> None:
    state = new_learner().state()
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = True  # as a GPU's
    learner = new_learner()
    learner.restore(state)
    assert not any(group["fused"] for group in learner.optimizer.param_groups)


def test_a_checkpoint_of_another_memory_format_gets_that_of_the_network() -> None:
    """The fused optimizer of a GPU needs it: a channels-last training goes on contiguous where cuDNN fails."""
    first = new_learner()
    for value in first.model.parameters():
        value.grad = torch.randn_like(value)
    first.optimizer.step()
    second = _Learner(first.config, ALONE, create_model(first.config.model), cudnn="contiguous")
    second.restore(copy.deepcopy(first.state()))
    for value, earlier in zip(second.model.parameters(), first.model.parameters(), strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            restored = second.optimizer.state[value][name]
            assert restored.stride() == value.stride()
            assert torch.equal(restored, first.optimizer.state[earlier][name])


def test_checkpoints_are_written_beside_the_steps_and_hold_the_state_of_their_moment(tmp_path: Path) -> None:
    learner = new_learner()
    weight = next(learner.model.parameters())
    with _CheckpointWriter(tmp_path / "last.ckpt") as writer:
        writer.save(learner.state())
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.add_(1.0)
    state = _load_checkpoint(tmp_path / "last.ckpt")
    assert state is not None and torch.equal(state["model"]["0.weight"], kept)


def test_a_checkpoint_that_could_not_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DiskError), _CheckpointWriter(tmp_path / "file" / "last.ckpt") as writer:
        writer.save(new_learner().state())

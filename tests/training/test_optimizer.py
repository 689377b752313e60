"""Test timm's optimizers by name: exact resume, health checks, and names that are refused."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from timm.optim import list_optimizers

from claris_kaggle.cli.main import main
from claris_kaggle.core.errors import UsageError
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.training import learner as learner_module
from claris_kaggle.training.optimizer import _UNSUITABLE, _require_optimizer
from tests.conftest import TINY
from tests.support.runs import places
from tests.training.test_fine_tuning import changes_after_a_step, make_learner

USABLE = [name for name in list_optimizers() if not name.startswith(tuple(_UNSUITABLE))]


@pytest.mark.parametrize("name", USABLE)
def test_a_learner_restored_from_a_file_continues_alike(name: str) -> None:
    _require_optimizer(name)
    whole, resumed = (
        make_learner(optimizer=name, lr_head=3.0, weight_decay=0.05, freeze_epochs=1, epochs=2) for _ in range(2)
    )
    changes_after_a_step(whole)  # the body has no moments yet
    whole.epoch = 1
    changes_after_a_step(whole)
    archive = io.BytesIO()
    torch.save(whole.state(), archive)
    archive.seek(0)
    resumed.restore(torch.load(archive, weights_only=True))
    for learner in (whole, resumed):
        changed = changes_after_a_step(learner)
        assert all(change.any() for change in changed.values())
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key


@pytest.mark.parametrize("name", ["adamw", "adam", "lion", "lamb", "sgd"])
def test_only_steps_that_change_no_weight_are_unhealthy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner_module, "_MAX_STEPS_WITHOUT_UPDATE", 2)
    learner = make_learner(optimizer=name)
    for _ in range(4):
        changes_after_a_step(learner)
        assert learner.check_health()
    next(learner.model.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    changed = changes_after_a_step(learner)
    assert not any(changed[key].any() for key, _ in learner.model.named_parameters()) and learner.check_health()
    changes_after_a_step(learner)
    assert not learner.check_health()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nadamv", "unknown timm optimizer. Similar names: nadam"),
        ("lookahead_adam", "unknown timm optimizer"),
        ("kron", "it draws random numbers that a checkpoint does not store"),
        ("adahessian", "it needs second derivatives"),
        ("bnbadam8bit", "it needs the package bitsandbytes. Similar names: adam"),
    ],
)
def test_other_names_are_refused_with_a_reason_and_similar_names(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        _require_optimizer(name)
    assert f"--optimizer is '{name}'" in str(raised.value) and "\n" not in str(raised.value)


def test_a_wrong_name_fails_before_a_run_folder_is_made(
    generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = places(generated, cache, tmp_path / "run")
    assert main(["train", *where, "--folds", str(fold_file), *TINY, "--optimizer", "adamv"]) == 2
    assert "--optimizer is 'adamv'; unknown timm optimizer. Similar names: adam" in capsys.readouterr().err
    assert not RunDir(tmp_path / "run").config.exists()

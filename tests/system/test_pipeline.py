"""Test the whole pipeline in one process: every file, shuffled tables, precisions, the demo."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from claris_kaggle.cli.main import main
from claris_kaggle.core.errors import TrainingError
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data.fold_file import read_folds
from claris_kaggle.data.tables import read_labels, read_sample
from claris_kaggle.evaluation.predictions import read_oof, read_test
from claris_kaggle.evaluation.run_metrics import gather_run
from claris_kaggle.inference.fold_models import load_trained, predict_ensemble
from claris_kaggle.models.factory import create_model
from claris_kaggle.models.weights import finish_fold, load_finished, save_weights
from tests.conftest import TINY, shuffle_rows
from tests.support.runs import (
    copy_run,
    places,
    predictions_of,
)

Call = Callable[..., tuple[int, str, str]]


def test_a_run_leaves_every_file_of_the_contract(finished: RunDir, generated: DataDir) -> None:
    ids, labels = read_labels(generated.labels)
    oof, test = read_oof(finished.oof), read_test(finished.test)
    assert oof.ids == ids and oof.labels.tolist() == labels.tolist()
    assert test.ids == sorted(read_sample(generated.sample))
    metrics = json.loads(finished.metrics.read_text())
    assert metrics["views"] == 8 and [row["fold"] for row in metrics["folds"]] == [0, 1, 2]
    assert set(metrics["overall"]) >= {"auc", "accuracy", "log_loss", "patches"}
    for fold in range(3):
        fold_dir = finished.fold(fold)
        for path in (
            fold_dir.checkpoint,
            fold_dir.weights,
            fold_dir.best_weights,
            fold_dir.weights_manifest,
            fold_dir.history,
        ):
            assert path.exists()
        assert len(fold_dir.history.read_text().splitlines()) == 3
    history = finished.fold(0).history.read_text().splitlines()[0]
    assert history == "epoch,train_loss,valid_loss,auc,accuracy,lr,seconds,images_per_second"


def test_one_view_and_eight_views_are_different_predictions(
    call: Call, finished: RunDir, generated: DataDir, cache: Path, tmp_path: Path
) -> None:
    run = copy_run(finished, tmp_path / "run")
    assert call("predict", *places(generated, cache, run), "--views", 1)[0] == 0
    one, eight = read_oof(run / "oof.csv").probabilities, read_oof(finished.oof).probabilities
    assert 0 < np.abs(one - eight).max() < 0.5


def test_predictions_that_are_no_numbers_are_refused_and_written_nowhere(
    call: Call, finished: RunDir, generated: DataDir, cache: Path, tmp_path: Path
) -> None:
    run = RunDir(copy_run(finished, tmp_path / "run", predicted=False))
    model = create_model("tiny")
    load_finished(run.fold(1), model)
    with torch.no_grad():
        model.get_classifier().bias.fill_(float("nan"))  # type: ignore[operator]
    save_weights(run.fold(1).weights, model)
    finish_fold(run.fold(1), {})
    code, shown, said = call("predict", *places(generated, cache, run.root))
    assert (code, shown) == (1, "") and "fold 1: " in said and "predictions are NaN or infinite in fp32" in said
    assert (
        run.fold(0).predictions_manifest.exists()
        and not run.fold(1).oof.exists()
        and not run.fold(1).predictions_manifest.exists()
    )
    with pytest.raises(TrainingError, match="a prediction is NaN or infinite"):  # and not benign
        predict_ensemble(load_trained(run.root), np.zeros((1, 96, 96, 3), dtype=np.uint8), views=1)


def test_shuffled_tables_give_the_same_bytes(
    call: Call, finished: RunDir, generated: DataDir, cache: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        (data / split).symlink_to(generated.root / split)
    for seed, name in enumerate(("train_labels.csv", "slides.csv", "sample_submission.csv")):
        shuffle_rows(generated.root / name, data / name, seed)
    shuffled = DataDir(data)
    folds, run = tmp_path / "folds.csv", tmp_path / "run"
    split = ["folds", "--data", data, "--slides", data / "slides.csv", "--k", 3, "--out", folds, "--cache", cache]
    assert call(*split)[0] == 0
    assert folds.read_bytes() == finished.folds.read_bytes()
    shuffle_rows(folds, tmp_path / "shuffled.csv")
    for verb in (["train", "--folds", tmp_path / "shuffled.csv", *TINY], ["predict"]):
        assert call(verb[0], *places(shuffled, cache, run), *verb[1:])[0] == 0
    assert predictions_of(run) == predictions_of(finished.root)
    for name, root in (("one", generated.root), ("two", data)):
        assert call("ensemble", run, "--data", root, "--out", tmp_path / f"{name}.csv")[0] == 0
    one, two = ((tmp_path / f"{name}.csv").read_text().splitlines() for name in ("one", "two"))
    assert one != two and sorted(one) == sorted(two)
    assert [line.split(",")[0] for line in two[1:]] == read_sample(data / "sample_submission.csv")


def test_the_demo_ends_with_a_checked_submission_and_a_report(call: Call, tmp_path: Path) -> None:
    arguments = ["demo", "--model", "tiny", "--train", 80, "--test", 8, "--out", tmp_path / "demo"]
    code, shown, said = call(*arguments, "--json")
    assert code == 0, said
    result = json.loads(shown)
    assert result["oof"]["patches"] == 80 and result["test"]["patches"] == 8
    assert Path(result["submission"]).exists() and "<svg" in Path(result["report"]).read_text()
    submission = Path(result["submission"]).read_bytes()
    code, shown, _ = call(*arguments)
    assert code == 0 and "OOF AUC" in shown and "claris train --data" in shown
    assert Path(result["submission"]).read_bytes() == submission


def test_folds_of_a_run_are_predicted_in_one_precision(
    call: Call, finished: RunDir, generated: DataDir, cache: Path, tmp_path: Path
) -> None:
    run = RunDir(copy_run(finished, tmp_path / "run"))
    arguments = ["predict", *places(generated, cache, run.root), "--nproc", "1"]

    def precisions() -> set[str]:
        return {json.loads(run.fold(fold).predictions_manifest.read_text())["precision"] for fold in range(3)}

    assert precisions() == {"fp32"}
    assert call(*arguments, "--precision", "bf16")[0] == 0 and precisions() == {"bf16"}
    code, _, said = call(*arguments)
    assert code == 0 and said.count("already predicted") == 3, "all folds have one precision, and none was asked for"
    run.fold(1).predictions_manifest.unlink()
    code, _, said = call(*arguments)
    assert code == 0 and "already predicted" not in said, "fold 1 is predicted in fp32, so all others are too"
    assert precisions() == {"fp32"} and predictions_of(run.root) == predictions_of(finished.root)


def test_predictions_of_another_input_are_made_again_and_a_mixture_is_named(
    call: Call,
    finished: RunDir,
    generated: DataDir,
    cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = RunDir(copy_run(finished, tmp_path / "run"))
    arguments = ["predict", *places(generated, cache, run.root), "--nproc", "1", "--views", "1"]
    assert call(*arguments)[0] == 0
    ours = run.oof.read_bytes()
    stored = json.loads(run.config.read_text())
    run.config.write_text(json.dumps({**stored, "normalise": "imagenet"}))
    code, _, said = call(*arguments)
    assert code == 0 and "already predicted" not in said and run.oof.read_bytes() != ours
    manifest = json.loads(run.fold(1).predictions_manifest.read_text())
    assert manifest["input"]["normalise"] == "imagenet"
    del manifest["input"]
    run.fold(1).predictions_manifest.write_text(json.dumps(manifest))
    code, _, said = call(*arguments)
    assert code == 0 and said.count("already predicted") == 3, "a manifest without the input is of an older version"
    run.fold(1).predictions_manifest.write_text(json.dumps({**manifest, "views": 4}))
    gather_run(run, read_folds(run.folds), read_sample(generated.sample), {})
    assert "in different ways (fold 0, 2 with 1 views in fp32, crop 96, " in capsys.readouterr().err


def test_the_precision_of_bf16_trains_and_predicts(
    generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:

    where = places(generated, cache, tmp_path / "run")
    assert main(["train", *where, "--folds", str(fold_file), *TINY, "--precision", "bf16"]) == 0
    assert main(["predict", *where]) == 0
    fast = RunDir(tmp_path / "run").oof.read_bytes()
    assert main(["predict", *where, "--precision", "fp32"]) == 0
    exact = RunDir(tmp_path / "run").oof.read_bytes()
    assert fast != exact and fast[:40] == exact[:40]

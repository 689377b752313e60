"""Test the metrics of a run: each is computed from the right patches, folds and slides."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from claris_kaggle.core.files import write_json
from claris_kaggle.core.paths import RunDir
from claris_kaggle.data.fold_file import Folds
from claris_kaggle.evaluation import calibration, metrics, run_metrics
from claris_kaggle.evaluation.auc_intervals import measure
from claris_kaggle.evaluation.predictions import Oof, read_oof, read_test, write_oof, write_test

TOTAL = 90
IDS = [f"{number:02d}" for number in range(TOTAL)]
FOLD = np.arange(TOTAL) % 3
LABELS = (np.random.default_rng(0).random(TOTAL) < 0.4).astype(np.int8)
VALUES = np.clip(np.random.default_rng(1).normal(0.3 + 0.3 * LABELS, 0.2), 0.01, 0.99).astype(np.float32)
SLIDES = [f"s{number % 15}" for number in range(TOTAL)]
OOF = Oof(IDS, LABELS, FOLD, VALUES)


def test_every_overall_figure_is_that_of_its_own_function() -> None:
    found = run_metrics.run_metrics(OOF, SLIDES)
    overall, plain = found.overall, metrics.summary(LABELS, VALUES)
    names = ("patches", "auc", "accuracy", "log_loss", "brier")
    assert [getattr(overall, name) for name in names] == [getattr(plain, name) for name in names]
    estimate = measure(LABELS, VALUES, SLIDES).estimate
    assert (overall.auc_interval, overall.auc_interval_by) == (estimate.interval, "slide")
    assert overall.best_threshold == metrics._best_threshold(LABELS, VALUES)[0]
    assert overall.accuracy_nested == metrics._nested_accuracy(LABELS, VALUES, FOLD)
    assert found.calibration == calibration.calibration_curve(LABELS, VALUES)
    assert overall.calibration_error == found.calibration.error
    assert overall.temperature == calibration.fit_temperature(LABELS, VALUES)
    assert run_metrics.run_metrics(OOF).overall.auc_interval_by == "patch"
    other = measure(LABELS, VALUES**2 * (FOLD + 1), SLIDES)
    assert run_metrics.run_metrics(OOF, SLIDES, other).overall.auc_interval == other.estimate.interval


def test_figures_of_folds_are_those_of_their_patches_and_their_aucs_have_a_mean_and_spread() -> None:
    found = run_metrics.run_metrics(OOF)
    aucs = [roc_auc_score(LABELS[fold == FOLD], VALUES[fold == FOLD]) for fold in range(3)]
    assert [(one.fold, one.patches) for one in found.folds] == [(0, 30), (1, 30), (2, 30)]
    assert [one.auc for one in found.folds] == pytest.approx(aucs, abs=1e-12)
    assert found.overall.fold_auc_mean == pytest.approx(sum(aucs) / 3, abs=1e-12)
    mean = sum(aucs) / 3
    assert found.overall.fold_auc_std == pytest.approx(np.sqrt(sum((one - mean) ** 2 for one in aucs) / 2), abs=1e-12)


def test_a_fold_of_one_class_has_no_part_in_the_mean_of_the_folds() -> None:
    fold = np.where(LABELS == 1, np.arange(TOTAL) % 2, np.arange(TOTAL) % 3)
    overall = run_metrics.run_metrics(Oof(IDS, LABELS, fold, VALUES)).overall
    aucs = [roc_auc_score(LABELS[fold == one], VALUES[fold == one]) for one in range(2)]
    assert overall.fold_auc_mean == pytest.approx(np.mean(aucs)) and overall.fold_auc_std is not None
    one_fold = run_metrics.run_metrics(Oof(IDS, LABELS, FOLD * 0, VALUES)).overall
    assert one_fold.fold_auc_mean == one_fold.auc
    assert (one_fold.fold_auc_std, one_fold.accuracy_nested, one_fold.pooling_remark) == (None, None, "")
    apart = run_metrics.run_metrics(Oof(IDS, LABELS, LABELS.astype(np.int64), VALUES)).overall
    assert (apart.fold_auc_mean, apart.fold_auc_std) == (None, None)


def test_the_json_holds_every_field_under_its_name() -> None:
    found = run_metrics.run_metrics(OOF, SLIDES)
    slides = run_metrics.slide_metrics(OOF, SLIDES)
    content = found.to_json(slides)
    assert list(content) == ["overall", "folds", "calibration", "slides"]
    assert content == json.loads(json.dumps(content)), "lists, texts and numbers alone"
    assert content["overall"] == {**vars(found.overall), "auc_interval": list(found.overall.auc_interval)}
    assert content["calibration"] == vars(found.calibration)
    figures = ["patches", "auc", "accuracy", "log_loss", "brier"]
    for part, rows, named in (
        ("folds", found.folds, ["fold", *figures]),
        ("slides", slides, ["slide", "fold", "malignant", *figures]),
    ):
        listed = content[part]
        assert isinstance(listed, list) and [list(one) for one in listed] == [named] * len(rows)
        assert listed == [vars(row) for row in rows]  # type: ignore[attr-defined]


def test_slides_are_listed_by_their_log_loss_then_by_their_name() -> None:
    oof = Oof(["a", "b", "c", "d", "e"], np.array([1, 0, 1, 0, 1]), np.array([4, 4, 2, 2, 1]),
              np.array([0.5, 0.5, 0.25, 0.25, 0.5]))  # fmt: skip
    rows = run_metrics.slide_metrics(oof, ["y", "y", "x", "x", "w"])
    assert [(row.slide, row.fold, row.patches, row.malignant, row.auc) for row in rows] == [
        ("x", 2, 2, 1, 0.5), ("w", 1, 1, 1, None), ("y", 4, 2, 1, 0.5),
    ]  # fmt: skip
    assert rows[0].log_loss == pytest.approx(np.log(4 * 4 / 3) / 2) and rows[1].log_loss == rows[2].log_loss
    assert run_metrics.slide_metrics(oof, None) == []


def test_a_pooled_auc_is_explained_from_a_thousandth_below_the_folds_on() -> None:
    remark = run_metrics.explain_pooling(0.5, 0.5 + 1 / 512)
    assert remark.startswith(
        "the pooled AUC, 0.5000, is below the mean AUC of the folds, 0.5020: each fold has its own "
    )
    assert remark.endswith("not affected, because each is the mean of all networks")
    assert run_metrics.explain_pooling(0.0, 0.001) and not run_metrics.explain_pooling(0.0, 0.00099)
    assert run_metrics.explain_pooling(0.9, 0.8) == run_metrics.explain_pooling(0.9, None) == ""
    shifted = np.clip(VALUES / 4 + 0.3 * FOLD, 0, 1).astype(np.float32)
    overall = run_metrics.run_metrics(Oof(IDS, LABELS, FOLD, shifted)).overall
    assert overall.pooling_remark == run_metrics.explain_pooling(overall.auc, overall.fold_auc_mean) != ""


@pytest.mark.parametrize("name", ["config", "metrics"])
def test_a_run_of_synthetic_patches_says_so_in_either_file(tmp_path: Path, name: str) -> None:
    run = RunDir(tmp_path)
    assert not run_metrics.is_generated_run(run)
    for path in (run.config, run.metrics):
        write_json(path, {})
    assert not run_metrics.is_generated_run(run)
    write_json(getattr(run, name), {"generated_data": True})
    assert run_metrics.is_generated_run(run)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Return a run of three folds that contains only predictions."""
    place = RunDir(tmp_path / "run")
    for number in range(3):
        rows = number == FOLD
        place.fold(number).root.mkdir(parents=True)
        ids = [IDS[row] for row in np.flatnonzero(rows)]
        write_oof(place.fold(number).oof, ids, LABELS[rows], number, VALUES[rows])
        write_test(place.fold(number).test, ["x", "y"], np.array([0.25, 0.5]) * (number + 1) / 3)
    return place


def test_a_run_is_gathered_from_the_files_of_its_folds(run: RunDir) -> None:
    folds = Folds(IDS, LABELS, SLIDES, FOLD, by_slide=True)
    content = run_metrics.gather_run(run, folds, ["y", "x"], {"views": 8})
    oof, test = read_oof(run.oof), read_test(run.test)
    assert (oof.ids, oof.fold.tolist(), oof.probabilities.tolist()) == (IDS, FOLD.tolist(), VALUES.tolist())
    assert test.ids == ["x", "y"] and test.probabilities == pytest.approx([0.5 / 3, 1 / 3])
    expected = run_metrics.run_metrics(OOF, SLIDES).to_json(run_metrics.slide_metrics(OOF, SLIDES))
    assert content == {"views": 8, **expected} and json.loads(run.metrics.read_text()) == content
    by_patch = Folds(IDS, LABELS, IDS, FOLD, by_slide=False)
    assert run_metrics.gather_run(run, by_patch, ["y", "x"], {})["slides"] == []


def settings(views: int, crop: int | None) -> dict[str, object]:
    about: dict[str, object] = {"views": views, "precision": "fp32"}
    return about if crop is None else {**about, "input": {"crop": crop, "normalise": "patches"}}


WAYS = {
    "alike": ([settings(8, 96)] * 3, ""),
    "an older file does not name its input": ([settings(8, None), settings(8, 64), settings(8, 64)], ""),
    "no file names its input": ([settings(8, None)] * 3, ""),
    "one fold without a manifest": ([settings(8, 96), None, settings(8, 96)], ""),
    "one fold with a damaged manifest": ([settings(8, 96), "{", settings(8, 96)], ""),
    "views": (
        [settings(8, 96), settings(1, 96), settings(8, 96)],
        "fold 0, 2 with 8 views in fp32, crop 96, normalise patches; fold 1 with 1 views in fp32, crop 96, normalise",
    ),
    "crops": (
        [settings(8, 64), None, settings(8, 96)],
        "fold 0 with 8 views in fp32, crop 64, normalise patches; fold 2 with 8 views in fp32, crop 96, normalise",
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_folds_that_were_predicted_in_different_ways_are_named(
    run: RunDir, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    manifests, words = WAYS[name]
    for number, content in enumerate(manifests):
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            run.fold(number).predictions_manifest.write_text(text)
    run_metrics._report_mixed_folds({number: run.fold(number) for number in range(3)})
    said = capsys.readouterr().err
    if words:
        assert said.startswith(f"the folds were predicted in different ways ({words}")
        assert said.endswith("); predict again to make them comparable\n")
    assert bool(said) == bool(words)

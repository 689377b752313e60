"""Prediction files: each id exactly once, joined by id, nothing filled in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from claris_kaggle.core.errors import ClarisError, DataError, RunError, TableError
from claris_kaggle.core.paths import RunDir
from claris_kaggle.data.fold_file import Folds, read_folds
from claris_kaggle.data.fold_split import make_folds
from claris_kaggle.ensembling.combine import combine
from claris_kaggle.ensembling.runs import Run, load_run
from claris_kaggle.evaluation import metrics, predictions, run_metrics
from claris_kaggle.evaluation.predictions import Oof, TestPredictions, read_oof
from tests.conftest import shuffle_rows

TOTAL = 60


@pytest.fixture
def folds() -> Folds:
    ids = [f"{number:040x}" for number in range(TOTAL)]
    return make_folds(ids, (np.arange(TOTAL) % 5 < 2).astype(np.int8), k=3)


def probabilities(total: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(total).astype(np.float32)


@pytest.fixture
def files(tmp_path: Path, folds: Folds) -> dict[int, Path]:
    paths = {}
    for fold in range(3):
        rows = folds.valid_rows(fold)
        paths[fold] = tmp_path / f"oof{fold}.csv"
        ids = [folds.ids[row] for row in rows]
        predictions.write_oof(paths[fold], ids, folds.labels[rows], fold, probabilities(len(rows), fold))
    return paths


def test_the_folds_files_become_one_with_each_id_once(files: dict[int, Path], folds: Folds) -> None:
    oof = predictions._collect_oof(files, folds)
    assert oof.ids == folds.ids
    for fold in range(3):
        assert oof.probabilities[folds.valid_rows(fold)].tolist() == probabilities(20, fold).tolist()


def test_shuffled_rows_give_the_same_predictions(files: dict[int, Path], folds: Folds, tmp_path: Path) -> None:
    for fold, path in files.items():
        shuffle_rows(path, tmp_path / f"shuffled{fold}.csv")
    shuffled = {fold: tmp_path / f"shuffled{fold}.csv" for fold in files}
    one, two = (predictions._collect_oof(which, folds) for which in (files, shuffled))
    assert one.probabilities.tobytes() == two.probabilities.tobytes()


FAULTS = {
    "a row missing": (lambda lines: lines[:-1], "1 id of the fold file missing"),
    "a foreign id": (lambda lines: [*lines, "f" * 40 + ",0,0,0.5"], "1 id not in the fold file"),
    "a row twice": (lambda lines: [*lines, lines[1]], "1 repeated id"),
    "another label": (lambda lines: [lines[0], *flip(lines[1:], 1, {"0": "1", "1": "0"})], "20 labels different from"),
    "another fold": (lambda lines: [lines[0], *flip(lines[1:], 2, {"0": "1"})], "20 fold numbers different from"),
    "NaN": (lambda lines: [lines[0], *flip(lines[1:], 3, {}, "nan")], "20 probabilities NaN"),
    "too high": (lambda lines: [lines[0], *flip(lines[1:], 3, {}, "1.5")], "outside 0 to 1"),
    "below zero": (lambda lines: [lines[0], *flip(lines[1:], 3, {}, "-1e-9")], "outside 0 to 1"),
    "infinite": (lambda lines: [lines[0], *flip(lines[1:], 3, {}, "inf")], "infinite"),
    "no number": (lambda lines: [lines[0], *flip(lines[1:], 3, {}, "high")], "no number"),
    "empty": (lambda lines: [lines[0], *flip(lines[1:], 3, {}, "")], "missing"),
}


def flip(lines: list[str], column: int, change: dict[str, str], value: str = "") -> list[str]:
    rows = [line.split(",") for line in lines]
    for row in rows:
        row[column] = change.get(row[column], value)
    return [",".join(row) for row in rows]


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_oof_file_is_refused_with_its_fault(files: dict[int, Path], folds: Folds, name: str) -> None:
    fault, words = FAULTS[name]
    files[0].write_text("\n".join(fault(files[0].read_text().splitlines())) + "\n")
    with pytest.raises(TableError) as caught:
        predictions._collect_oof(files, folds)
    assert words in str(caught.value)


def test_a_cut_off_file_is_refused_wherever_it_is_cut(files: dict[int, Path], folds: Folds) -> None:
    content = files[0].read_bytes()
    for size in range(0, len(content), 7):
        files[0].write_bytes(content[:size])
        with pytest.raises(ClarisError):
            predictions._collect_oof(files, folds)


def test_a_missing_fold_is_named(files: dict[int, Path], folds: Folds) -> None:
    files[1].unlink()
    with pytest.raises(RunError, match="predictions of fold 1 are missing"):
        predictions._collect_oof(files, folds)


def test_test_predictions_are_the_mean_of_the_folds(tmp_path: Path) -> None:
    ids = [f"{number:x}" * 40 for number in range(9)]
    for fold in range(3):
        predictions.write_test(tmp_path / f"{fold}.csv", ids, probabilities(9, fold))
    test = predictions._collect_test({fold: tmp_path / f"{fold}.csv" for fold in range(3)}, ids[::-1])
    expected = np.mean([probabilities(9, fold).astype(np.float64) for fold in range(3)], axis=0)
    assert test.ids == ids and test.probabilities == pytest.approx(expected, abs=1e-7)
    with pytest.raises(TableError, match=r"1 id not in sample_submission.csv"):
        predictions._collect_test({0: tmp_path / "0.csv"}, ids[1:])


def test_figures_equal_scikit_learns() -> None:
    from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

    labels, values = (np.arange(500) % 3 == 0).astype(np.int8), probabilities(500).round(2)
    figures = metrics.summary(labels, values)
    assert figures.auc == pytest.approx(roc_auc_score(labels, values), abs=1e-12)
    assert figures.accuracy == accuracy_score(labels, values >= 0.5)
    clipped = np.clip(values.astype(np.float64), 2.0**-24, 1 - 2.0**-24)
    assert figures.log_loss == pytest.approx(log_loss(labels, clipped), abs=1e-12)


def test_the_best_threshold_is_the_best_of_all() -> None:
    labels, values = (np.arange(200) % 3 == 0).astype(np.int8), probabilities(200).round(2)
    values[labels == 1] = np.minimum(values[labels == 1] + 0.3, 1)
    threshold, best = metrics._best_threshold(labels, values)
    assert best == pytest.approx(metrics._accuracy(labels, values, threshold))
    assert best == pytest.approx(max(metrics._accuracy(labels, values, one) for one in np.arange(-0.005, 1.01, 0.01)))


def test_a_threshold_and_its_accuracy_hold_where_probabilities_are_one() -> None:
    labels, values = np.array([0, 0, 0, 1]), np.array([1.0, 1.0, 1.0, 0.2])
    threshold, best = metrics._best_threshold(labels, values)
    assert best == metrics._accuracy(labels, values, threshold) == 0.25


@pytest.mark.parametrize("value", [-1.5, 2.0, float("nan"), float("inf")])
def test_what_is_no_probability_has_no_figures(value: float) -> None:
    with pytest.raises(DataError, match="1 of 4 values are not probabilities"):
        metrics.summary(np.array([0, 1, 0, 1], np.int8), np.array([0.1, 0.2, value, 0.9]))


def test_names_do_for_paths(finished: RunDir) -> None:
    oof = read_oof(str(finished.oof))  # type: ignore[arg-type]
    assert read_folds(str(finished.folds)).ids == oof.ids  # type: ignore[arg-type]
    assert load_run(RunDir(str(finished.root))).oof.ids == oof.ids  # type: ignore[arg-type]


def test_one_class_has_no_auc() -> None:
    with pytest.raises(DataError, match="same label"):
        metrics.summary(np.zeros(5, np.int8), probabilities(5))


def make_run(folds: Folds, name: str, seed: int) -> Run:
    oof = Oof(folds.ids, folds.labels, folds.fold, probabilities(TOTAL, seed))
    return Run(name, oof, TestPredictions([f"{number:040x}" for number in range(7)], probabilities(7, seed + 50)))


def test_the_mean_of_one_run_is_that_run(folds: Folds) -> None:
    run = make_run(folds, "only", 0)
    found = combine([run])
    assert found.oof.probabilities.tobytes() == run.oof.probabilities.tobytes()
    assert found.test.probabilities.tobytes() == run.test.probabilities.tobytes()


def test_runs_that_do_not_fit_together_are_refused_by_name(folds: Folds) -> None:
    first = make_run(folds, "first", 0)
    other = make_folds(folds.ids, folds.labels, k=3, seed=5)
    with pytest.raises(RunError, match="first and second cannot be combined: other folds"):
        combine([first, make_run(other, "second", 1)])
    flipped = Folds(folds.ids, (1 - folds.labels).astype(np.int8), folds.groups, folds.fold)
    with pytest.raises(RunError, match="other labels"):
        combine([first, make_run(flipped, "second", 1)])
    fewer = Run("fewer", first.oof, TestPredictions(first.test.ids[1:], probabilities(6)))
    with pytest.raises(RunError, match="1 test id in one of them only"):
        combine([first, fewer])


def test_a_run_whose_predictions_are_of_other_folds_is_refused(finished: RunDir, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.root.mkdir()
    for path in (finished.oof, finished.test, finished.folds):
        (run.root / path.name).write_bytes(path.read_bytes())
    assert load_run(run).oof.ids
    text = run.oof.read_text().replace(",0,0.", ",1,0.", 3)
    run.oof.write_text(text)
    with pytest.raises(TableError, match="fold numbers? different from the fold file"):
        load_run(run)


def test_a_run_without_predictions_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no oof.csv and test.csv there.*claris predict"):
        load_run(RunDir(tmp_path))
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "config.json").touch()
    with pytest.raises(RunError, match=rf"there \(runs in {tmp_path}: first\)"):
        load_run(RunDir(tmp_path))
    nearest = rf"frist: no such folder \(runs in {tmp_path}: first; did you mean {tmp_path}/first\?"
    with pytest.raises(RunError, match=nearest):
        load_run(RunDir(tmp_path / "frist"))


def test_figures_of_each_slide_are_those_of_its_patches(folds: Folds) -> None:
    oof = Oof(folds.ids, folds.labels, folds.fold, probabilities(TOTAL))
    slides = [f"s{row % 7}" for row in range(TOTAL)]
    rows = run_metrics.slide_metrics(oof, slides)
    assert sorted(row.slide for row in rows) == [f"s{number}" for number in range(7)]
    assert [row.log_loss for row in rows] == sorted((row.log_loss for row in rows), reverse=True)
    where = np.arange(TOTAL) % 7 == 3
    row = next(row for row in rows if row.slide == "s3")
    assert (row.patches, row.malignant) == (where.sum(), folds.labels[where].sum())
    assert row.auc == pytest.approx(metrics.auc(folds.labels[where], oof.probabilities[where]))
    alone = run_metrics.slide_metrics(oof, [f"{row}" for row in range(TOTAL)])
    assert alone[0].auc is None and len(alone) == TOTAL


def test_probabilities_without_a_label_of_their_own_are_refused() -> None:
    with pytest.raises(DataError, match="2 labels and 3 probabilities; expected the same number of both"):
        metrics.summary(np.array([0, 1], np.int8), np.array([0.1, 0.2, 0.3], np.float32))

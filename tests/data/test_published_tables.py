"""Tables as people publish them: read for what they are, or refused with what to change in them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.ensembling.ensemble_runs import ensemble_runs
from claris_kaggle.ensembling.runs import load_run
from claris_kaggle.ensembling.submission_file import check_submission, write_submission
from claris_kaggle.evaluation.predictions import TestPredictions, read_oof, read_test, write_run_oof, write_test
from tests.support.handmade import FOLD, IDS, LABELS, TEST_IDS, TEST_LABELS, TESTS, TOTAL, make_run, put, put_data

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    return put_data(tmp_path / "data")


def saturated(labels: np.ndarray, seed: int) -> np.ndarray:
    """Probabilities in float64 that float32 cannot tell apart: most are within 1e-9 of 1."""
    noisy = labels + np.random.default_rng(seed).normal(0, 0.8, len(labels))
    return 1 - 10.0 ** -(9 + noisy)


def put_saturated(folder: Path, name: str, seed: int) -> RunDir:
    """A run of another tool in float64, written as pandas writes it."""
    place = RunDir(folder / name)
    place.root.mkdir(parents=True)
    rows = zip(IDS, LABELS, FOLD, saturated(LABELS, seed).tolist(), strict=True)
    place.oof.write_text("id,label,fold,probability\n" + "".join(f"{i},{y},{f},{p!r}\n" for i, y, f, p in rows))
    tests = zip(TEST_IDS, saturated(TEST_LABELS, seed + 1).tolist(), strict=True)
    place.test.write_text("id,probability\n" + "".join(f"{name},{value!r}\n" for name, value in tests))
    return place


def test_float64_predictions_keep_their_ranks_from_the_file_to_the_submission(data: DataDir, tmp_path: Path) -> None:
    place = put_saturated(tmp_path, "theirs", 1)
    exact = roc_auc_score(LABELS, saturated(LABELS, 1))
    assert abs(exact - roc_auc_score(LABELS, saturated(LABELS, 1).astype(np.float32))) > 0.05
    kept = RunDir(tmp_path / "kept")
    result = ensemble_runs([place], data, tmp_path / "s.csv", keep=kept)
    assert result.oof.auc == pytest.approx(exact, abs=1e-12)
    values = {line.split(",")[0]: float(line.split(",")[1]) for line in (tmp_path / "s.csv").read_text().split()[1:]}
    assert [values[name] for name in TEST_IDS] == saturated(TEST_LABELS, 2).tolist()
    assert read_oof(kept.oof).probabilities.tolist() == saturated(LABELS, 1).tolist()
    assert load_run(kept).measured.value == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("method", ["mean", "logit", "auto"])
def test_blends_of_float64_runs_have_no_ties(method: str, data: DataDir, tmp_path: Path) -> None:
    places = [put_saturated(tmp_path, name, seed) for name, seed in (("first", 1), ("second", 5))]
    ensemble_runs([*places, put(tmp_path, make_run("ours", 3))], data, tmp_path / "s.csv", method=method)
    assert check_submission(tmp_path / "s.csv", TEST_IDS).tied < 0.01 * TESTS


def test_calibrated_float64_predictions_stay_distinct(data: DataDir, tmp_path: Path) -> None:
    result = ensemble_runs([put_saturated(tmp_path, "theirs", 1)], data, tmp_path / "s.csv", calibrate=True)
    assert result.ensemble.calibration is not None and result.ensemble.calibration.applied
    assert check_submission(tmp_path / "s.csv", TEST_IDS).tied == 0


def test_float32_predictions_are_read_and_written_as_before(tmp_path: Path) -> None:
    run = make_run("ours", 3)
    place = put(tmp_path, run)
    before = place.oof.read_bytes(), place.test.read_bytes()
    oof, test = read_oof(place.oof), read_test(place.test)
    assert oof.probabilities.dtype == test.probabilities.dtype == np.float32
    write_run_oof(place.oof, oof)
    write_test(place.test, test.ids, test.probabilities)
    assert (place.oof.read_bytes(), place.test.read_bytes()) == before


SPREAD = 1 / (1 + np.exp(-np.random.default_rng(3).normal(0, 6, TESTS)))  # as sure as a trained network
TIES = {
    "half precision": (SPREAD.astype(np.float16).astype(np.float64), r"half precision \(fp16\)"),
    "half precision, as NumPy prints it": (SPREAD.astype(np.float16).astype(str).astype(float), r"\(fp16\)"),
    "bfloat16": (
        (SPREAD.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32).astype(float),
        r"half precision \(bf16\)",
    ),
    "a mean of saturated folds": (np.where(SPREAD < 0.3, 0.0, SPREAD), r"are exactly 0 and 0 exactly 1"),
    "two decimals": (SPREAD.round(2), "rounded to 2 decimals"),
    "classes": ((SPREAD > 0.5).astype(float), "only two distinct values; submit probabilities"),
    "clipped": (np.clip(SPREAD, 0.0123, 0.98), r"are 0.0123 and .* are 0.98, .*may be clipped"),
    "levels": ((np.floor(SPREAD * 7) + 1) / 7.3, "only 7 distinct values"),
}


@pytest.mark.parametrize("name", TIES)
def test_rows_that_cannot_be_ranked_are_counted_with_their_cause(
    name: str, call: Call, data: DataDir, tmp_path: Path
) -> None:
    values, words = TIES[name]
    rows = "".join(f"{one},{value!r}\n" for one, value in zip(TEST_IDS, values.tolist(), strict=True))
    (tmp_path / "s.csv").write_text("id,label\n" + rows)
    facts = check_submission(tmp_path / "s.csv", TEST_IDS)
    assert facts.tied == sum(values.tolist().count(value) > 1 for value in values.tolist())
    code, shown, said = call("submission", "check", tmp_path / "s.csv", "--data", data.root)
    assert code == 0 and shown.rstrip().endswith(f"valid, but {facts.tied:,} rows are tied")
    assert re.search(words, said), said
    assert f"{facts.tied:,} of {TESTS:,} rows" in said and said.count("\n") == 1


def test_a_few_ties_are_no_matter(call: Call, data: DataDir, tmp_path: Path) -> None:
    values = SPREAD.copy()
    values[:9] = values[0]
    write_submission(tmp_path / "s.csv", TestPredictions(TEST_IDS, values), TEST_IDS, {})
    code, shown, said = call("submission", "check", tmp_path / "s.csv", "--data", data.root)
    assert code == 0 and shown.rstrip().endswith(": valid") and said == ""


def test_an_ensemble_says_that_its_rows_are_tied(call: Call, data: DataDir, tmp_path: Path) -> None:
    run = make_run("rounded", 3)
    place = put(tmp_path, replace(run, test=replace(run.test, probabilities=run.test.probabilities.round(2))))
    code, _, said = call("ensemble", place.root, "--data", data.root, "--out", tmp_path / "s.csv")
    assert code == 0 and "s.csv: " in said and "rounded to 2 decimals" in said
    assert json.loads((tmp_path / "s.json").read_text())["tied"] > 0.9 * TOTAL

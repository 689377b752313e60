"""Runs without training: invented predictions of invented patches, as folders of two files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data import tables
from claris_kaggle.data.fold_file import Folds, write_folds
from claris_kaggle.data.tables import write_table
from claris_kaggle.ensembling.runs import Run
from claris_kaggle.evaluation import auc_intervals
from claris_kaggle.evaluation.predictions import Oof, TestPredictions, write_run_oof, write_test

TOTAL, TESTS = 600, 2000
IDS = [f"{number:040x}" for number in range(TOTAL)]
TEST_IDS = [f"{number:040x}" for number in range(TOTAL, TOTAL + TESTS)]
FOLD = np.arange(TOTAL) % 5
SLIDES = [f"s{number % 20}" for number in range(TOTAL)]  # each whole in one fold
LABELS = (np.random.default_rng(0).random(TOTAL) < 0.4).astype(np.int8)
TEST_LABELS = (np.random.default_rng(1).random(TESTS) < 0.4).astype(np.int8)


def predict(labels: np.ndarray, seed: int, noise: float = 1.0) -> np.ndarray:
    """Probabilities that go with the labels."""
    noisy = 2 * labels - 1 + np.random.default_rng(seed).normal(0, noise, len(labels))
    return (1 / (1 + np.exp(-noisy))).astype(np.float32)


def make_run(name: str, seed: int, noise: float = 1.0) -> Run:
    oof = Oof(IDS, LABELS, FOLD, predict(LABELS, seed, noise))
    return Run(name, oof, TestPredictions(TEST_IDS, predict(TEST_LABELS, seed + 1000, noise)))


def select_rows(run: Run, rows: np.ndarray) -> Run:
    ids = [run.oof.ids[row] for row in rows]
    return replace(run, oof=Oof(ids, run.oof.labels[rows], run.oof.fold[rows], run.oof.probabilities[rows]))


def put(folder: Path, run: Run) -> RunDir:
    """The run as another tool would leave it: two files and nothing else."""
    place = RunDir(folder / run.name)
    place.root.mkdir(parents=True)
    write_run_oof(place.oof, run.oof)
    write_test(place.test, run.test.ids, run.test.probabilities)
    return place


def put_data(folder: Path) -> DataDir:
    """The tables of a competition, without its patches."""
    place = DataDir(folder)
    for split in ("train", "test"):
        place.patches(split).mkdir(parents=True)
    write_table(place.labels, {"id": IDS[::-1], "label": LABELS[::-1]})
    write_table(place.sample, {"id": TEST_IDS[::-1], "label": np.zeros(TESTS, int)})
    return place


def put_with_slides(folder: Path, run: Run) -> RunDir:
    """The run with a fold file that knows the slides."""
    place = put(folder, run)
    write_folds(place.folds, Folds(IDS, LABELS, SLIDES, FOLD), {})
    return place


def watch_work(monkeypatch: pytest.MonkeyPatch) -> tuple[list[bytes], list[Path]]:
    """The predictions that are resampled from now on, and the tables that are read."""
    resampled, read = [], []
    bootstrap = auc_intervals._cluster_bootstrap

    def watched_bootstrap(labels: np.ndarray, values: np.ndarray, slides: list[str]) -> np.ndarray:
        resampled.append(values.tobytes())
        return bootstrap(labels, values, slides)

    def watch(reader: Callable[..., object]) -> Callable[..., object]:
        def watched(path: Path, *arguments: object, **more: object) -> object:
            read.append(path)
            return reader(path, *arguments, **more)

        return watched

    monkeypatch.setattr(auc_intervals, "_cluster_bootstrap", watched_bootstrap)
    for name in ("read_table", "open_table"):
        monkeypatch.setattr(tables, name, watch(getattr(tables, name)))
    return resampled, read

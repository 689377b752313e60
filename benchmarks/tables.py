"""The statistics of five models over a table of the competition's size, in CPU time of one thread.

python -m benchmarks.tables
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from benchmarks.simulation import draw_scores, to_probabilities
from benchmarks.timing import QUICK, Result, interleave, publish
from claris_kaggle.core.paths import RunDir
from claris_kaggle.ensembling import blending
from claris_kaggle.ensembling.combine import _stack_columns
from claris_kaggle.ensembling.runs import _require_comparable, load_run
from claris_kaggle.evaluation import auc_intervals
from claris_kaggle.evaluation.metrics import auc
from claris_kaggle.evaluation.predictions import Oof, write_run_oof, write_test

ROWS, TEST_ROWS, MODELS, SLIDES, RESAMPLES, LOOPED = 220_025, 57_458, 5, 216, 1000, 15
if QUICK:
    ROWS, TEST_ROWS, RESAMPLES, LOOPED = 22_025, 5_745, 50, 2


def write_runs(root: Path, models: int = MODELS) -> tuple[list[RunDir], list[str]]:
    """Runs on disk with five folds by slide, and the slide of each row in the order of the ids."""
    generator = np.random.default_rng(0)
    scores = draw_scores(
        generator, slides=SLIDES, patches=1040, effect=0.4, strengths=tuple(np.linspace(2.5, 3.0, models))
    )
    rows = slice(0, ROWS)
    ids = [f"{number:040x}" for number in range(len(scores.labels[rows]))]
    test_ids = [f"{number:040x}" for number in range(10**6, 10**6 + TEST_ROWS)]
    run_dirs = []
    for model in range(models):
        run_dir = RunDir(root / f"run{model:02d}")
        run_dir.root.mkdir()
        values = to_probabilities(scores.values[rows, model])
        write_run_oof(run_dir.oof, Oof(ids, scores.labels[rows], scores.slide[rows] % 5, values))
        write_test(run_dir.test, test_ids, generator.random(TEST_ROWS).astype(np.float32))
        run_dirs.append(run_dir)
    return run_dirs, [f"s{number}" for number in scores.slide[rows]]


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """The CPU time that the work takes, and what it gives."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def main() -> None:
    """Measure, compare with scikit-learn, print and keep."""
    with tempfile.TemporaryDirectory() as folder:
        run_dirs, slides = write_runs(Path(folder))
        took: dict[str, float] = {}
        took["read and join five runs"], runs = seconds(lambda: [load_run(one) for one in run_dirs])
        took["check that they are comparable"], _ = seconds(lambda: _require_comparable(runs))
    oof = runs[0].oof
    columns = _stack_columns([run.oof.probabilities for run in runs])
    took["AUC of each"], aucs = seconds(lambda: [auc(oof.labels, column) for column in columns.T])
    took["DeLong's covariance"], measured = seconds(
        lambda: [auc_intervals.measure(oof.labels, column) for column in columns.T]
    )
    numbers = np.unique(slides, return_inverse=True)[1]
    took[f"bootstrap, {RESAMPLES:,} resamples of {SLIDES} slides"], samples = seconds(
        lambda: [
            auc_intervals._cluster_bootstrap(oof.labels, column, numbers, resamples=RESAMPLES) for column in columns.T
        ]
    )
    for name in blending._FITTED_METHODS:
        took[f"{name}: weights fitted five times (nested)"], _ = seconds(
            lambda name=name: blending._nested_predictions(name, oof.labels, columns, oof.fold)  # type: ignore[misc]
        )
    weights = auc_intervals._resample_weights(numbers, oof.labels == 1, RESAMPLES, np.random.default_rng(0))

    def loop() -> np.ndarray[Any, Any]:
        some = weights[:LOOPED, numbers]
        return np.array([roc_auc_score(oof.labels, columns[:, 0], sample_weight=weight) for weight in some])

    off = np.abs(np.array(aucs) - [one.value for one in measured]).max()
    apart = max(np.abs(loop() - samples[0][:LOOPED]).max(), off)

    def ours() -> Any:
        return auc_intervals._cluster_bootstrap(oof.labels, columns[:, 0], numbers, resamples=RESAMPLES)

    rates = interleave(
        {
            "loop over scikit-learn": lambda: LOOPED / seconds(loop)[0],
            "matrix of slide pairs": lambda: RESAMPLES / seconds(ours)[0],
        },
        rounds=5,
    )
    facts = {name: f"{value:.2f} s" for name, value in took.items()}
    facts["all of these on one core"] = f"{sum(took.values()):.1f} s"
    facts["largest difference from scikit-learn"] = f"{apart:.1e}"
    publish(
        Result(
            "tables", f"AUC of one model on bootstrap resamples of slides, {ROWS:,} rows", "resamples/s", rates, facts,
            [f"CPU time of one thread. The loop is timed over {LOOPED} resamples, claris over {RESAMPLES:,}."],
        )
    )  # fmt: skip


if __name__ == "__main__":
    with threadpool_limits(1):
        main()

"""Measure the statistics of five runs of the competition's size, in CPU time of one thread.

python -m benchmarks.tables
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from benchmarks.simulation import simulate_scores, to_probabilities, write_simulated_run
from benchmarks.timing import QUICK, Result, interleave, measure_cpu_seconds, publish
from claris_kaggle.core.paths import RunDir
from claris_kaggle.ensembling import blending
from claris_kaggle.ensembling.combine import _stack_columns
from claris_kaggle.ensembling.runs import _require_comparable, load_run
from claris_kaggle.evaluation import auc_intervals
from claris_kaggle.evaluation.metrics import auc
from claris_kaggle.evaluation.predictions import Oof

ROWS, TEST_ROWS, RUNS, SLIDES, RESAMPLES, LOOP_RESAMPLES = 220_025, 57_458, 5, 216, 1000, 15
if QUICK:
    ROWS, TEST_ROWS, RESAMPLES, LOOP_RESAMPLES = 22_025, 5_745, 50, 2


def write_runs(root: Path, runs: int = RUNS) -> tuple[list[RunDir], list[str]]:
    """Write simulated runs with five folds by slide. Return their folders and the slide of each row."""
    generator = np.random.default_rng(0)
    scores = simulate_scores(
        generator, slides=SLIDES, patches=1040, effect=0.4, strengths=tuple(np.linspace(2.5, 3.0, runs))
    )
    rows = slice(0, ROWS)
    ids = [f"{number:040x}" for number in range(len(scores.labels[rows]))]
    test_ids = [f"{number:040x}" for number in range(10**6, 10**6 + TEST_ROWS)]
    run_dirs = []
    for run in range(runs):
        oof = Oof(ids, scores.labels[rows], scores.slide[rows] % 5, to_probabilities(scores.values[rows, run]))
        run_dirs.append(write_simulated_run(root / f"run{run:02d}", oof, test_ids, generator))
    return run_dirs, [f"s{number}" for number in scores.slide[rows]]


def main() -> None:
    """Run the benchmark, print the result and save it."""
    with tempfile.TemporaryDirectory() as folder:
        run_dirs, slides = write_runs(Path(folder))
        seconds: dict[str, float] = {}
        seconds["read and join five runs"], runs = measure_cpu_seconds(lambda: [load_run(one) for one in run_dirs])
        seconds["check that they are comparable"], _ = measure_cpu_seconds(lambda: _require_comparable(runs))
    oof = runs[0].oof
    columns = _stack_columns([run.oof.probabilities for run in runs])
    seconds["AUC of each"], aucs = measure_cpu_seconds(lambda: [auc(oof.labels, column) for column in columns.T])
    seconds["DeLong's covariance"], measured = measure_cpu_seconds(
        lambda: [auc_intervals.measure(oof.labels, column) for column in columns.T]
    )
    slide_numbers = np.unique(slides, return_inverse=True)[1]
    seconds[f"bootstrap, {RESAMPLES:,} resamples of {SLIDES} slides"], samples = measure_cpu_seconds(
        lambda: [
            auc_intervals._cluster_bootstrap(oof.labels, column, slide_numbers, resamples=RESAMPLES)
            for column in columns.T
        ]
    )
    for name in blending._FITTED_METHODS:
        seconds[f"{name}: weights fitted five times (nested)"], _ = measure_cpu_seconds(
            lambda name=name: blending._nested_predictions(name, oof.labels, columns, oof.fold)  # type: ignore[misc]
        )
    weights = auc_intervals._resample_weights(slide_numbers, oof.labels == 1, RESAMPLES, np.random.default_rng(0))

    def loop() -> np.ndarray[Any, Any]:
        patch_weights = weights[:LOOP_RESAMPLES, slide_numbers]
        return np.array([roc_auc_score(oof.labels, columns[:, 0], sample_weight=weight) for weight in patch_weights])

    def bootstrap() -> Any:
        return auc_intervals._cluster_bootstrap(oof.labels, columns[:, 0], slide_numbers, resamples=RESAMPLES)

    differences = [
        np.abs(np.array(aucs) - [one.value for one in measured]).max(),
        np.abs(loop() - samples[0][:LOOP_RESAMPLES]).max(),
    ]
    rates = interleave(
        {
            "loop over scikit-learn": lambda: LOOP_RESAMPLES / measure_cpu_seconds(loop)[0],
            "matrix of slide pairs": lambda: RESAMPLES / measure_cpu_seconds(bootstrap)[0],
        },
        rounds=5,
    )
    facts = {name: f"{value:.2f} s" for name, value in seconds.items()}
    facts["all of these on one core"] = f"{sum(seconds.values()):.1f} s"
    facts["largest difference from scikit-learn"] = f"{max(differences):.1e}"
    publish(
        Result(
            "tables", f"AUC of one model on bootstrap resamples of slides, {ROWS:,} rows", "resamples/s", rates, facts,
            [f"CPU time of one thread. The loop is timed over {LOOP_RESAMPLES} resamples, claris over {RESAMPLES:,}."],
        )
    )  # fmt: skip


if __name__ == "__main__":
    with threadpool_limits(1):
        main()

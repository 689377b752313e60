"""Measure the true gain of each method of combining runs, and the coverage of confidence intervals, on simulated runs.

python -m benchmarks.ensembling [--seeds N]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sklearn.metrics as sklearn
from numpy.typing import NDArray
from scipy import stats
from sklearn.calibration import calibration_curve

from benchmarks.processes import claris_command
from benchmarks.simulation import Scores, measure_coverage, simulate_scores, to_probabilities
from benchmarks.tables import write_runs
from benchmarks.timing import ROOT, format_markdown, measure_cpu_seconds
from claris_kaggle.core.paths import DataDir
from claris_kaggle.data.tables import write_table
from claris_kaggle.ensembling import blending
from claris_kaggle.ensembling.combine import _choose_method, _try_methods
from claris_kaggle.ensembling.runs import Run, _correlate_columns
from claris_kaggle.evaluation import calibration, metrics
from claris_kaggle.evaluation.auc_intervals import _cluster_bootstrap, _exact_interval, _resample_weights, measure
from claris_kaggle.evaluation.calibration import _CALIBRATION_BINS
from claris_kaggle.evaluation.metrics import auc
from claris_kaggle.evaluation.predictions import Oof, TestPredictions, read_oof, read_test

PAGE = ROOT / "docs" / "ensembling.md"
FOLDS, UNSEEN_PATCHES, RUNS = 5, 4000, 20


class Setting(NamedTuple):
    """Runs to combine, with the arguments of `simulate_scores`. `skew` scales the logits of each run."""

    name: str
    strengths: tuple[float, ...]
    shared: float
    slides: int
    patches: int
    effect: float = 0.3
    skew: tuple[float, ...] = ()


SETTINGS = (
    Setting("three equal runs", (2.0, 2.0, 2.0), 0.5, 60, 25),
    Setting("five equal runs, highly correlated", (2.2,) * 5, 0.85, 60, 25),
    Setting("one good run, two poor ones", (2.4, 0.8, 0.8), 0.3, 60, 25),
    Setting("one good run, four useless ones", (2.0, 0.0, 0.0, 0.0, 0.0), 0.2, 60, 25),
    Setting("five runs of increasing quality", (1.2, 1.5, 1.8, 2.1, 2.4), 0.5, 60, 25),
    Setting("few patches, three equal runs", (1.5, 1.5, 1.5), 0.5, 20, 15),
    Setting("few patches, one good run of three", (2.0, 0.7, 0.7), 0.3, 20, 15),
    Setting("three equal runs on different scales", (2.0, 2.0, 2.0), 0.5, 60, 25, 0.3, (1.0, 4.0, 0.3)),
    Setting("many patches, three runs of increasing quality", (1.8, 2.0, 2.2), 0.7, 200, 60),
    Setting("twelve equal runs", (2.0,) * 12, 0.7, 60, 25),
    Setting("few patches, twelve equal runs", (1.5,) * 12, 0.6, 20, 15),
    Setting("few slides that differ much, four equal runs", (2.0,) * 4, 0.5, 10, 60, 0.6),
    Setting("three runs, one inverted", (2.0, 2.0, -2.0), 0.3, 60, 25),
)


def simulate_runs(setting: Setting, seed: int) -> tuple[Scores, NDArray[np.float64], Scores, NDArray[np.float64]]:
    """Return scores and probabilities of the same runs for OOF patches and for unseen patches."""
    generator = np.random.default_rng([seed, SETTINGS.index(setting)])
    sets = []
    for slides in (setting.slides, max(2, UNSEEN_PATCHES // setting.patches)):
        scores = simulate_scores(
            generator, slides=slides, patches=setting.patches, effect=setting.effect, strengths=setting.strengths,
            shared=setting.shared,
        )  # fmt: skip
        skew = np.array(setting.skew or (1.0,) * len(setting.strengths))
        sets += [scores, to_probabilities((scores.values - 1) * skew + 1).astype(np.float64)]
    return tuple(sets)  # type: ignore[return-value]


class Gains(NamedTuple):
    """The gain of each method over the plain mean, in AUC.

    Attributes:
        applied: gain of `--method NAME` on unseen patches. It is 0 where the command falls back to the mean.
        unconditional: gain of the method itself on unseen patches, if it were always used.
        reported: nested gain on the OOF patches that the command reports.
    """

    applied: dict[str, float]
    unconditional: dict[str, float]
    reported: dict[str, float]


def measure_gains(setting: Setting, seed: int) -> Gains:
    """Measure the gains of all methods on one simulation."""
    oof, columns, unseen, unseen_columns = simulate_runs(setting, seed)
    fold = oof.slide % FOLDS
    ids, no_test = [str(row) for row in range(len(oof.labels))], TestPredictions([], np.empty(0, np.float32))
    runs = [
        Run(str(number), Oof(ids, oof.labels, fold, column.astype(np.float32)), no_test, oof.slides)
        for number, column in enumerate(columns.T)
    ]
    trials = _try_methods(runs, columns, list(blending._BLEND_METHODS), fold)
    scores = {name: auc(unseen.labels, fit_and_apply(name, oof.labels, columns, unseen_columns)) for name in trials}
    unconditional = {name: score - scores["mean"] for name, score in scores.items()}
    chosen = {name: _choose_method({name: trial}) for name, trial in trials.items()} | {"auto": _choose_method(trials)}
    reported = {name: trials[method].score.gain.difference for name, method in chosen.items()}
    return Gains({name: unconditional[method] for name, method in chosen.items()}, unconditional, reported)


def fit_and_apply(
    name: str, labels: NDArray[np.int8], columns: NDArray[np.float64], unseen_columns: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Fit the method on all OOF rows and return its predictions for the unseen ones."""
    space = blending._BLEND_METHODS[name].space
    return blending._fit_blend(name, labels, blending._to_space(columns, space)).apply(
        blending._to_space(unseen_columns, space)
    )


def tabulate_gains(seeds: int) -> tuple[list[str], list[str]]:
    """Return two tables with a row per setting: gains of `--method NAME`, and of methods that are always used."""
    methods = [name for name in blending._BLEND_METHODS if name != "mean"]
    names, worst = [*methods, "auto"], (np.inf, "", "")
    applied, unconditional = [], []
    for setting in SETTINGS:
        gains = [measure_gains(setting, seed) for seed in range(seeds)]
        reported = format_mean([one.reported["auto"] for one in gains])
        applied.append([setting.name, *(format_mean([one.applied[name] for one in gains]) for name in names), reported])
        unconditional.append(
            [setting.name, *(format_mean([one.unconditional[name] for one in gains]) for name in methods)]
        )
        means = [(float(np.mean([one.applied[name] for one in gains])), name, setting.name) for name in names]
        worst = min(worst, *means)
        print(*applied[-1], sep="  ", file=sys.stderr, flush=True)
    return [
        *format_markdown(["runs", *names, "gain reported by `auto`"], applied),
        "",
        f"Worst mean gain: {worst[0]:+.5f} (`{worst[1]}`, {worst[2]}).",
    ], format_markdown(["runs", *methods], unconditional)


def format_mean(values: list[float]) -> str:
    """Return mean and standard error as text."""
    return f"{np.mean(values):+.4f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.4f}"


def tabulate_coverage(trials: int) -> list[str]:
    """Return the table of how often 95 % intervals contain the true value."""
    columns = ["slides", "patches per slide", "slide effect", "AUC"]
    columns += ["coverage of the AUC", "coverage of the difference"]
    rows = []
    for slides, patches, effect, level in (
        (100, 30, 0.0, 0.90), (216, 20, 0.0, 0.97), (216, 30, 0.4, 0.97), (216, 30, 0.7, 0.95), (80, 40, 0.7, 0.93),
        (40, 30, 0.7, 0.90), (20, 30, 0.7, 0.90), (216, 30, 0.4, 0.99), (216, 20, 0.0, 0.995),
    ):  # fmt: skip
        measured = measure_coverage(
            slides=slides, patches=patches, effect=effect, auc=level, trials=trials, seed=slides
        )
        coverages = [f"{measured[name]:.1%}" for name in ("interval", "comparison")]
        rows.append([slides, patches, effect, f"{measured['truth']:.3f}", *coverages])
        print(*rows[-1], file=sys.stderr, flush=True)
    return format_markdown(columns, rows)


def tabulate_times() -> list[str]:
    """Return the table of CPU seconds of each method, nested over five folds, for 20 runs of the competition's size."""
    import resource

    generator = np.random.default_rng(0)
    strengths = tuple(np.linspace(2.5, 3, RUNS))
    scores = simulate_scores(generator, slides=216, patches=1040, effect=0.4, strengths=strengths)
    rows = slice(0, 220_025)
    labels, fold = scores.labels[rows], scores.slide[rows] % FOLDS
    columns, cells = to_probabilities(scores.values[rows]), []
    for name in blending._BLEND_METHODS:
        seconds, _ = measure_cpu_seconds(
            lambda name=name: blending._nested_predictions(name, labels, columns.astype(np.float64), fold)  # type: ignore[misc]
        )
        cells.append((name, f"{seconds:.1f}"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [
        *format_markdown(["method", "seconds"], cells),
        "",
        f"Peak memory of the process: {peak:,.0f} MB, of which the table takes {columns.size * 8e-6:.0f}.",
    ]


def measure_command_cost() -> str:
    """Return a sentence on the CPU time and memory of `claris ensemble` with the folders of twenty runs."""
    import resource

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run_dirs, _ = write_runs(root, RUNS)
        oof, test = read_oof(run_dirs[0].oof), read_test(run_dirs[0].test)
        data = DataDir(root / "data")
        for split in ("train", "test"):
            data.patches(split).mkdir(parents=True)
        write_table(data.labels, {"id": oof.ids, "label": oof.labels})
        write_table(data.sample, {"id": test.ids, "label": np.zeros(len(test.ids), int)})
        arguments = [*(run_dir.root for run_dir in run_dirs), "--data", data.root, "--out", root / "s.csv"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = claris_command("ensemble", *arguments, "--method", "auto")
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (
        f"`claris ensemble` of the twenty folders with `--method auto`: {seconds:.0f} s of CPU time on one core "
        f"and {after.ru_maxrss / 1024:,.0f} MB, including input, output and metrics of each run."
    )


def tabulate_agreement() -> list[str]:
    """Return the table of the largest differences from scikit-learn and SciPy on the same 20,000 patches."""
    scores = simulate_scores(np.random.default_rng(0), slides=40, patches=500, effect=0.4, strengths=(2.0, 2.2))
    # A multiple of the number of bins, so that both implementations use the same bins.
    count = len(scores.labels) // _CALIBRATION_BINS * _CALIBRATION_BINS
    labels, columns = scores.labels[:count], to_probabilities(scores.values[:count]).astype(np.float64)
    values, distinct = columns[:, 0], stats.rankdata(columns[:, 0]) / len(labels)
    slide_numbers = np.unique(scores.slides[:count], return_inverse=True)[1]
    weights = _resample_weights(slide_numbers, labels == 1, 20, np.random.default_rng(0))
    resampled = [sklearn.roc_auc_score(labels, values, sample_weight=weight[slide_numbers]) for weight in weights]
    wins = stats.mannwhitneyu(values[labels == 1], values[labels == 0]).statistic / (labels.sum() * (1 - labels).sum())
    observed, predicted = calibration_curve(labels, distinct, n_bins=_CALIBRATION_BINS, strategy="quantile")
    curve = calibration.calibration_curve(labels, distinct)
    bound = stats.binomtest(40, 40).proportion_ci(method="exact").low
    pairs = {
        "AUC, `sklearn.metrics.roc_auc_score`": (auc(labels, values), sklearn.roc_auc_score(labels, values)),
        "AUC of DeLong's placements, `scipy.stats.mannwhitneyu`": (measure(labels, values).value, wins),
        "AUC of resampled slides, `roc_auc_score` with weights": (
            _cluster_bootstrap(labels, values, slide_numbers, resamples=20), resampled,
        ),
        "log loss, `sklearn.metrics.log_loss`": (metrics.log_loss(labels, values), sklearn.log_loss(labels, values)),
        "Brier score, `sklearn.metrics.brier_score_loss`": (
            metrics._brier(labels, values), sklearn.brier_score_loss(labels, values),
        ),
        "calibration curve, `sklearn.calibration.calibration_curve`": (
            [curve.observed, curve.predicted], [observed, predicted],
        ),
        "rank correlation, `scipy.stats.spearmanr`": (
            _correlate_columns(list(columns.T))[0, 1], stats.spearmanr(columns[:, 0], columns[:, 1]).statistic,
        ),
        "interval of an AUC of 1, `scipy.stats.binomtest`": (_exact_interval(1.0, 40)[0], bound),
    }  # fmt: skip
    rows = [(name, f"{np.abs(np.subtract(value, expected)).max():.0e}") for name, (value, expected) in pairs.items()]
    return format_markdown(["metric", "largest difference"], rows)


def main() -> None:
    """Run the benchmark and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--trials", type=int, default=800)
    arguments = parser.parse_args()
    applied, unconditional = tabulate_gains(arguments.seeds)
    parts = {
        "{gains}": applied,
        "{unconditional}": unconditional,
        "{coverage}": tabulate_coverage(arguments.trials),
        "{times}": [*tabulate_times(), "", measure_command_cost()],
        "{agreement}": tabulate_agreement(),
        "{seeds}": [str(arguments.seeds)],
        "{trials}": [str(arguments.trials)],
    }
    text = (ROOT / "benchmarks" / "ensembling-notes.md").read_text("utf-8")
    for name, lines in parts.items():
        text = text.replace(name, "\n".join(lines))
    PAGE.write_text(text, "utf-8")
    print(PAGE.relative_to(ROOT))


if __name__ == "__main__":
    main()

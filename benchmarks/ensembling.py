"""What each way of combining runs is truly worth, on made-up runs whose truth is known; and how often intervals hold.

python -m benchmarks.ensembling [--seeds N]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sklearn.metrics as sklearn
from numpy.typing import NDArray
from scipy import stats
from sklearn.calibration import calibration_curve

from benchmarks.simulation import Scores, coverage, draw_scores, to_probabilities
from benchmarks.tables import write_runs
from benchmarks.timing import ROOT
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
FOLDS, UNSEEN, RUNS = 5, 4000, 20


class Setting(NamedTuple):
    """Runs to combine: how strong each is, what they share, and how many slides and patches there are."""

    name: str
    strengths: tuple[float, ...]
    shared: float
    slides: int
    patches: int
    effect: float = 0.3
    skew: tuple[float, ...] = ()


SETTINGS = (
    Setting("three equal runs", (2.0, 2.0, 2.0), 0.5, 60, 25),
    Setting("five equal runs, much alike", (2.2,) * 5, 0.85, 60, 25),
    Setting("one good run, two poor ones", (2.4, 0.8, 0.8), 0.3, 60, 25),
    Setting("one good run, four useless ones", (2.0, 0.0, 0.0, 0.0, 0.0), 0.2, 60, 25),
    Setting("a ladder of five", (1.2, 1.5, 1.8, 2.1, 2.4), 0.5, 60, 25),
    Setting("few patches, three equal runs", (1.5, 1.5, 1.5), 0.5, 20, 15),
    Setting("few patches, one good run of three", (2.0, 0.7, 0.7), 0.3, 20, 15),
    Setting("three equal runs on other scales", (2.0, 2.0, 2.0), 0.5, 60, 25, 0.3, (1.0, 4.0, 0.3)),
    Setting("many patches, a ladder of three", (1.8, 2.0, 2.2), 0.7, 200, 60),
    Setting("twelve equal runs", (2.0,) * 12, 0.7, 60, 25),
    Setting("few patches, twelve equal runs", (1.5,) * 12, 0.6, 20, 15),
    Setting("few slides that differ much, four equal runs", (2.0,) * 4, 0.5, 10, 60, 0.6),
    Setting("three runs, one upside down", (2.0, 2.0, -2.0), 0.3, 60, 25),
)


def make(setting: Setting, seed: int) -> tuple[Scores, NDArray[np.float64], Scores, NDArray[np.float64]]:
    """OOF patches and unseen ones of the same runs, with their probabilities."""
    generator = np.random.default_rng([seed, SETTINGS.index(setting)])
    sets = []
    for slides in (setting.slides, max(2, UNSEEN // setting.patches)):
        scores = draw_scores(
            generator, slides=slides, patches=setting.patches, effect=setting.effect, strengths=setting.strengths,
            shared=setting.shared,
        )  # fmt: skip
        skew = np.array(setting.skew or (1.0,) * len(setting.strengths))
        sets += [scores, to_probabilities((scores.values - 1) * skew + 1).astype(np.float64)]
    return tuple(sets)  # type: ignore[return-value]


class Gains(NamedTuple):
    """For each method, over the plain mean in AUC of unseen patches, or as the nested score says."""

    handed_out: dict[str, float]
    bare: dict[str, float]
    said: dict[str, float]


def gains(setting: Setting, seed: int) -> Gains:
    """What is handed out for each method, what the method itself would come to, and the gain that is told."""
    known, columns, unseen, others = make(setting, seed)
    fold = known.slide % FOLDS
    ids, nothing = [str(row) for row in range(len(known.labels))], TestPredictions([], np.empty(0, np.float32))
    runs = [
        Run(str(number), Oof(ids, known.labels, fold, column.astype(np.float32)), nothing, known.slides)
        for number, column in enumerate(columns.T)
    ]
    trials = _try_methods(runs, columns, list(blending._BLEND_METHODS), fold)
    scores = {name: auc(unseen.labels, apply_to(name, known.labels, columns, others)) for name in trials}
    bare = {name: score - scores["mean"] for name, score in scores.items()}
    taken = {name: _choose_method({name: trial}) for name, trial in trials.items()} | {"auto": _choose_method(trials)}
    said = {name: trials[one].score.gain.difference for name, one in taken.items()}
    return Gains({name: bare[one] for name, one in taken.items()}, bare, said)


def apply_to(
    name: str, labels: NDArray[np.int8], columns: NDArray[np.float64], others: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The method fitted on all OOF rows and applied to unseen ones."""
    space = blending._BLEND_METHODS[name].space
    return blending._fit_blend(name, labels, blending._to_space(columns, space)).apply(
        blending._to_space(others, space)
    )


def gain_tables(seeds: int) -> tuple[list[str], list[str]]:
    """A row for each setting: what is handed out, with what `auto` says of itself; and the bare methods."""
    methods = [name for name in blending._BLEND_METHODS if name != "mean"]
    names, worst = [*methods, "auto"], (np.inf, "", "")
    out = ["| runs | " + " | ".join([*names, "gain reported by `auto`"]) + " |", "| --- " * (len(names) + 2) + "|"]
    bare = ["| runs | " + " | ".join(methods) + " |", "| --- " * (len(methods) + 1) + "|"]
    for setting in SETTINGS:
        rows = [gains(setting, seed) for seed in range(seeds)]
        cells = [mean_cell([row.handed_out[name] for row in rows]) for name in names]
        cells.append(mean_cell([row.said["auto"] for row in rows]))
        out.append(f"| {setting.name} | " + " | ".join(cells) + " |")
        bare.append(
            f"| {setting.name} | " + " | ".join(mean_cell([row.bare[name] for row in rows]) for name in methods) + " |"
        )
        means = [(float(np.mean([row.handed_out[name] for row in rows])), name, setting.name) for name in names]
        worst = min(worst, *means)
        print(out[-1], bare[-1], sep="\n", file=sys.stderr, flush=True)
    return [*out, "", f"Worst mean gain: {worst[0]:+.5f} (`{worst[1]}`, {worst[2]})."], bare


def mean_cell(values: list[float]) -> str:
    """Mean and standard error."""
    return f"{np.mean(values):+.4f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.4f}"


def coverage_table(trials: int) -> list[str]:
    """How often 95 % intervals hold the truth."""
    lines = [
        "| slides | patches per slide | slide effect | AUC | coverage of the AUC | coverage of the difference |",
        "| --- " * 6 + "|",
    ]
    for slides, patches, effect, level in (
        (100, 30, 0.0, 0.90), (216, 20, 0.0, 0.97), (216, 30, 0.4, 0.97), (216, 30, 0.7, 0.95), (80, 40, 0.7, 0.93),
        (40, 30, 0.7, 0.90), (20, 30, 0.7, 0.90), (216, 30, 0.4, 0.99), (216, 20, 0.0, 0.995),
    ):  # fmt: skip
        held = coverage(slides=slides, patches=patches, effect=effect, auc=level, trials=trials, seed=slides)
        cells = (
            slides,
            patches,
            effect,
            f"{held['truth']:.3f}",
            f"{held['interval']:.1%}",
            f"{held['comparison']:.1%}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def size_table() -> list[str]:
    """Seconds of one core for each method, nested over five folds, at the competition's size and twenty runs."""
    import resource

    generator = np.random.default_rng(0)
    scores = draw_scores(generator, slides=216, patches=1040, effect=0.4, strengths=tuple(np.linspace(2.5, 3, RUNS)))
    rows = slice(0, 220_025)
    labels, fold, columns = scores.labels[rows], scores.slide[rows] % FOLDS, to_probabilities(scores.values[rows])
    lines = ["| method | seconds |", "| --- | --- |"]
    for name in blending._BLEND_METHODS:
        began = time.process_time()
        blending._nested_predictions(name, labels, columns.astype(np.float64), fold)
        lines.append(f"| {name} | {time.process_time() - began:.1f} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [
        *lines,
        "",
        f"Peak memory of the process: {peak:,.0f} MB, of which the table takes {columns.size * 8e-6:.0f}.",
    ]


def whole_facts() -> list[str]:
    """Seconds and memory of the command itself over folders of twenty runs."""
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
        places = [*(str(one.root) for one in run_dirs), "--data", str(data.root), "--out", str(root / "s.csv")]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "claris_kaggle", "ensemble", *places, "--method", "auto"]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return [f"`claris ensemble` of the twenty folders with `--method auto`: {seconds:.0f} s of CPU time on one core "
            f"and {after.ru_maxrss / 1024:,.0f} MB, including input, output and metrics of each run."]  # fmt: skip


def agreement_table() -> list[str]:
    """The largest difference to what scikit-learn and SciPy say of the same 20,000 patches."""
    scores = draw_scores(np.random.default_rng(0), slides=40, patches=500, effect=0.4, strengths=(2.0, 2.2))
    even = (
        len(scores.labels) // _CALIBRATION_BINS * _CALIBRATION_BINS
    )  # so that bins of equal size are the same for both
    labels, columns = scores.labels[:even], to_probabilities(scores.values[:even]).astype(np.float64)
    values, smooth = columns[:, 0], stats.rankdata(columns[:, 0]) / len(labels)
    numbers = np.unique(scores.slides[:even], return_inverse=True)[1]
    weights = _resample_weights(numbers, labels == 1, 20, np.random.default_rng(0))
    resampled = [sklearn.roc_auc_score(labels, values, sample_weight=weight[numbers]) for weight in weights]
    wins = stats.mannwhitneyu(values[labels == 1], values[labels == 0]).statistic / (labels.sum() * (1 - labels).sum())
    observed, predicted = calibration_curve(labels, smooth, n_bins=_CALIBRATION_BINS, strategy="quantile")
    curve = calibration.calibration_curve(labels, smooth)
    bound = stats.binomtest(40, 40).proportion_ci(method="exact").low
    pairs = {
        "AUC, `sklearn.metrics.roc_auc_score`": (auc(labels, values), sklearn.roc_auc_score(labels, values)),
        "AUC of DeLong's placements, `scipy.stats.mannwhitneyu`": (measure(labels, values).value, wins),
        "AUC of resampled slides, `roc_auc_score` with weights": (
            _cluster_bootstrap(labels, values, numbers, resamples=20), resampled,
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
    differences = ((name, float(np.abs(np.subtract(ours, theirs)).max())) for name, (ours, theirs) in pairs.items())
    return [
        "| metric | largest difference |",
        "| --- | --- |",
        *(f"| {name} | {off:.0e} |" for name, off in differences),
    ]


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--trials", type=int, default=800)
    arguments = parser.parse_args()
    handed_out, bare = gain_tables(arguments.seeds)
    parts = {
        "{gains}": handed_out,
        "{bare}": bare,
        "{coverage}": coverage_table(arguments.trials),
        "{sizes}": [*size_table(), "", *whole_facts()],
        "{agreement}": agreement_table(),
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

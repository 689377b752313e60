"""Several runs as one: their OOF and test probabilities joined by id and combined.

Only runs over the same fold file can be scored together: over another one, a patch that one run
did not train on may have been in the other's training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from claris_kaggle import blending, tables
from claris_kaggle.calibration import apply_temperature, fit_temperature, nested_temperature
from claris_kaggle.errors import RunError, UsageError, count, name_few
from claris_kaggle.folds import read_folds
from claris_kaggle.metrics import auc
from claris_kaggle.paths import RunDir
from claris_kaggle.predictions import Oof, TestPredictions, check_oof, read_oof, read_test
from claris_kaggle.uncertainty import Comparison, compare_aucs, estimate_auc

# An OOF AUC above this on real patches smells of labels that leaked.
TOO_GOOD = 0.9995


@dataclass(frozen=True)
class Run:
    """A finished run's predictions.

    Attributes:
        name: the folder's name.
        oof, test: of all its folds.
        slides: the slide of each OOF patch; None where the folds were made without.
    """

    name: str
    oof: Oof
    test: TestPredictions
    slides: list[str] | None = None


@dataclass(frozen=True)
class Ensemble:
    """What comes of several runs.

    Attributes:
        oof: each patch combined by weights that were fitted without its fold.
        test: combined by weights fitted on all folds.
        slides: as in `Run`.
        evidence: the method, its weights, what each method scored, what was noticed; plain values.
    """

    oof: Oof
    test: TestPredictions
    slides: list[str] | None
    evidence: dict[str, Any]


def load_run(run_dir: RunDir) -> Run:
    """The predictions of the run in `run_dir`, known to be of its own folds where it has a fold file.

    Raises:
        RunError: it is not predicted yet.
        TableError: a file is faulty, or of another fold file.
    """
    missing = [path.name for path in (run_dir.oof, run_dir.test) if not path.exists()]
    if missing:
        found = f"{run_dir.root}: no {' and '.join(missing)} there"
        needed = "the predictions of all its folds are needed"
        raise RunError(found, needed, "Run claris train until all folds are finished, then claris predict")
    oof, test = read_oof(run_dir.oof), read_test(run_dir.test)
    slides = None
    if run_dir.folds.exists():
        folds = read_folds(run_dir.folds)
        check_oof(oof, folds.ids, folds.labels, folds.fold, run_dir.oof)
        slides = folds.slides
    return Run(run_dir.root.name, oof, test, slides)


def combine(runs: Sequence[Run], method: str = "mean", *, only_sound: bool = False) -> Ensemble:
    """The runs as one; neither their order nor a copy among them makes a difference.

    Args:
        method: a name of `blending.METHODS`, or `auto`: the best by its nested score, if it gains more over
            the plain mean than its own uncertainty; else the mean.
        only_sound: leave out runs that `examine` has something against.
    Raises:
        UsageError: an unknown method.
        RunError: the runs are over different folds, labels or test patches, or none is left.
    """
    blending.require_method(method)
    require_comparable(runs)
    remarks = {run.name: text for run in runs if (text := examine(run))}
    kept, copies = drop_copies([run for run in runs if not (only_sound and run.name in remarks)])
    if not kept:
        raise RunError(f"{name_few(remarks)}: nothing sound among the runs", "", "Look at their reports")
    columns = stack_columns([run.oof.probabilities for run in kept])
    first, slides = kept[0], next((run.slides for run in kept if run.slides), None)
    if method == "auto":
        method, tried = choose(first.oof, columns, slides)
    else:
        tried = try_methods(first.oof, columns, slides, sorted({"mean", method}))
    space = blending.METHODS[method].space
    blend = blending.fit(method, first.oof.labels, blending.to_space(columns, space))
    test = blend.apply(blending.to_space(stack_columns([run.test.probabilities for run in kept]), space))
    oof = blending.nested(method, first.oof.labels, columns, first.oof.fold)
    evidence = {
        **blending.describe(blend, [run.name for run in kept]),
        "methods": tried,
        "correlations": correlate(kept, columns),
        "remarks": remarks,
        "copies": copies,
        "left_out": sorted(remarks) if only_sound else [],
    }
    return Ensemble(
        Oof(first.oof.ids, first.oof.labels, first.oof.fold, oof.astype(np.float32)),
        TestPredictions(first.test.ids, test.astype(np.float32)),
        slides,
        evidence,
    )


def calibrated(together: Ensemble) -> Ensemble:
    """The ensemble with its probabilities scaled by one temperature, fitted on its OOF predictions.

    The OOF of each fold is scaled by the temperature of the other folds, the test by that of all.
    """
    oof = together.oof
    temperature = fit_temperature(oof.labels, oof.probabilities)
    scaled = nested_temperature(oof.labels, oof.probabilities, oof.fold).astype(np.float32)
    test = apply_temperature(together.test.probabilities, temperature).astype(np.float32)
    return replace(
        together,
        oof=replace(oof, probabilities=scaled),
        test=replace(together.test, probabilities=test),
        evidence={**together.evidence, "temperature": temperature},
    )


def stack_columns(columns: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
    """The columns side by side, float64 [N, M]."""
    return np.stack(columns, axis=1).astype(np.float64)


def try_methods(
    oof: Oof, columns: NDArray[np.float64], slides: list[str] | None, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The nested AUC of each method and its gain over the plain mean, with the gain's interval."""
    mean = blending.nested("mean", oof.labels, columns, oof.fold)
    tried = {}
    for name in names:
        values = blending.nested(name, oof.labels, columns, oof.fold) if name != "mean" else mean
        gain = compare_aucs(oof.labels, values, mean, slides) if name != "mean" else Comparison(0, 0, 0, 0, 1.0, "")
        tried[name] = {"auc": auc(oof.labels, values.astype(np.float32)), "gain": gain.to_json()}
    return tried


def choose(oof: Oof, columns: NDArray[np.float64], slides: list[str] | None) -> tuple[str, dict[str, dict[str, Any]]]:
    """The method of the highest nested AUC whose gain's interval lies above 0, else the mean; and the evidence."""
    names = list(blending.METHODS)
    if columns.shape[1] == 1 or len(np.unique(oof.fold)) == 1:
        names = ["mean"]  # nothing to weigh, or nothing to fit weights on
    tried = try_methods(oof, columns, slides, names)
    better = [name for name in tried if tried[name]["gain"]["interval"][0] > 0]
    return max(better, key=lambda name: tried[name]["auc"], default="mean"), tried


def correlate(runs: Sequence[Run], columns: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    """Spearman's correlation of each pair of runs' OOF probabilities."""
    from scipy.stats import rankdata

    if len(runs) < 2:
        return {}
    with np.errstate(invalid="ignore"):  # a constant run has no correlation: it counts as none
        table = np.nan_to_num(np.corrcoef(rankdata(columns, axis=0), rowvar=False))
    names = [run.name for run in runs]
    return {
        one: {other: float(table[row, column]) for column, other in enumerate(names) if other != one}
        for row, one in enumerate(names)
    }


def examine(run: Run) -> str:
    """What speaks against the run's OOF predictions; nothing for a sound one."""
    values = run.oof.probabilities
    if values.min() == values.max():
        return f"every OOF probability is {values[0]:g}"
    estimate = estimate_auc(run.oof.labels, values, run.slides)
    if estimate.high < 0.5:
        return f"OOF AUC {estimate.value:.4f}: it looks inverted, as if the probability of benign had been written"
    if estimate.low <= 0.5:
        return f"OOF AUC {estimate.value:.4f}: no better than chance"
    if estimate.value > TOO_GOOD:
        return f"OOF AUC {estimate.value:.4f}: too good to be true; it may have seen the labels"
    return ""


def drop_copies(runs: Sequence[Run]) -> tuple[list[Run], dict[str, str]]:
    """The runs with different predictions, in an order of their own, and which copies were dropped for whom."""
    first: dict[str, Run] = {}
    copies = {}
    for run in sorted(runs, key=lambda run: run.name):
        key = tables.digest(run.oof.ids, run.oof.probabilities) + tables.digest(run.test.ids, run.test.probabilities)
        if key in first:
            copies[run.name] = first[key].name
        else:
            first[key] = run
    return [first[key] for key in sorted(first)], copies


def require_comparable(runs: Sequence[Run]) -> None:
    """Refuse runs of one name, and runs that are not over the same ids, labels, folds and test patches.

    Raises:
        UsageError: two runs have the same name.
        RunError: naming two runs and what differs between them.
    """
    names = [run.name for run in runs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError(f"{repeated[0]} is given more than once", "", "Name each run once")
    first = runs[0]
    for run in runs[1:]:
        faults = []
        for noun, mine, yours in (("training", first.oof.ids, run.oof.ids), ("test", first.test.ids, run.test.ids)):
            differ = sorted(set(mine) ^ set(yours))
            if differ:
                faults.append(f"{count(len(differ), noun + ' id')} in one of them only ({name_few(differ)})")
        if not faults:
            for what, old, new in (
                ("labels", first.oof.labels, run.oof.labels),
                ("folds", first.oof.fold, run.oof.fold),
            ):
                if np.any(old != new):
                    faults.append(f"other {what}")
        if faults:
            found = f"{first.name} and {run.name} do not fit together: {', '.join(faults)}"
            raise RunError(found, "runs over the same data and fold file are needed", "Leave one of them out")

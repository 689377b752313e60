"""Several runs as one: their OOF and test probabilities joined by id and averaged.

Only runs over the same fold file can be scored together: over another one, a patch that one run
did not train on may have been in the other's training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from claris_kaggle import tables
from claris_kaggle.errors import RunError, UsageError, count, name_few
from claris_kaggle.folds import read_folds
from claris_kaggle.metrics import Probabilities
from claris_kaggle.paths import RunDir
from claris_kaggle.predictions import Oof, TestPredictions, check_oof, read_oof, read_test

METHODS = ("mean", "rank")


@dataclass(frozen=True)
class Run:
    """A finished run's predictions.

    Attributes:
        name: the folder's name.
        oof, test: of all its folds.
    """

    name: str
    oof: Oof
    test: TestPredictions


def load_run(run_dir: RunDir) -> Run:
    """The predictions of the run, known to be of its own folds.

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
    if run_dir.folds.exists():
        folds = read_folds(run_dir.folds)
        check_oof(oof, folds.ids, folds.labels, folds.fold, run_dir.oof)
    return Run(run_dir.root.name, oof, test)


def combine(runs: Sequence[Run], method: str = "mean") -> tuple[Oof, TestPredictions]:
    """The runs' mean as one run's predictions; the order of the runs makes no difference.

    Args:
        method: `mean` of the probabilities, or `rank`: the mean of each run's ranks in 0..1,
            which leaves every run the same spread.
    Raises:
        UsageError: an unknown method, or the same run twice.
        RunError: the runs are over different folds, labels or test patches.
    """
    if method not in METHODS:
        raise UsageError(f"--method is {method!r}", f"it must be one of {', '.join(METHODS)}")
    require_distinct(runs)
    require_comparable(runs)
    first = runs[0]
    oof = average([run.oof.probabilities for run in runs], method)
    test = average([run.test.probabilities for run in runs], method)
    return Oof(first.oof.ids, first.oof.labels, first.oof.fold, oof), TestPredictions(first.test.ids, test)


def average(columns: Sequence[Probabilities], method: str) -> Probabilities:
    """The mean over the columns, float32 [N] in 0..1; a single column's mean is itself."""
    parts = [to_ranks(column) if method == "rank" else column.astype(np.float64) for column in columns]
    # Sorted, so that no rounding depends on the order of the runs.
    return np.sort(np.stack(parts), axis=0).mean(axis=0).astype(np.float32)


def to_ranks(values: Probabilities) -> NDArray[np.float64]:
    """The place of each value among all, float64 in 0..1, ties sharing the middle."""
    from scipy.stats import rankdata

    return (rankdata(values) - 0.5) / len(values)


def require_distinct(runs: Sequence[Run]) -> None:
    """Refuse the same predictions twice, which would count double.

    Raises:
        UsageError: naming the two.
    """
    seen: dict[str, str] = {}
    for run in runs:
        key = tables.digest(run.test.ids, run.test.probabilities)
        if key in seen:
            raise UsageError(f"{seen[key]} and {run.name} hold the same predictions", "", "Name each run once")
        seen[key] = run.name


def require_comparable(runs: Sequence[Run]) -> None:
    """Refuse runs that are not over the same ids, labels, folds and test patches.

    Raises:
        RunError: naming two runs and what differs between them.
    """
    first = runs[0]
    for run in runs[1:]:
        faults = []
        for noun, mine, yours in (("training", first.oof.ids, run.oof.ids), ("test", first.test.ids, run.test.ids)):
            differ = sorted(set(mine) ^ set(yours))
            if differ:
                faults.append(f"{count(len(differ), noun + ' id')} in one of them only ({name_few(differ)})")
        if not faults:
            for noun, old, new in (
                ("labels", first.oof.labels, run.oof.labels),
                ("folds", first.oof.fold, run.oof.fold),
            ):
                if np.any(old != new):
                    faults.append(f"other {noun}")
        if faults:
            found = f"{first.name} and {run.name} do not fit together: {', '.join(faults)}"
            raise RunError(found, "runs over the same data and fold file are needed", "Leave one of them out")

"""Make pseudo-labels of test patches from the predictions of finished runs, for a second round of training.

The rows of fold k are the predictions of fold k's networks for the test patches. These networks did not train on the
validation patches of fold k. In a second round, fold k uses only these rows, so its OOF predictions stay out-of-fold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.core.errors import RunError, UsageError
from claris_kaggle.core.files import read_json, sha256_file
from claris_kaggle.core.paths import DataDir, FoldDir, RunDir, require_replaceable
from claris_kaggle.data import tables
from claris_kaggle.data.fold_file import Folds, read_folds
from claris_kaggle.data.pseudo_file import PSEUDO_COLUMNS, require_test_ids, sort_pseudo_labels, write_pseudo_file
from claris_kaggle.ensembling.runs import label_runs
from claris_kaggle.evaluation.predictions import read_test

_PREDICT_AGAIN = "Run claris predict with this run and --data folder"


@dataclass(frozen=True, kw_only=True)
class _PseudoFold:
    """The number of pseudo-labels of a fold, by class."""

    fold: int
    benign: int
    malignant: int


@dataclass(frozen=True, kw_only=True)
class PseudoSummary:
    """A file of pseudo-labels.

    Attributes:
        file: path of the CSV.
        test_patches: number of test patches.
        folds: the number of pseudo-labels of each fold.
    """

    file: Path
    test_patches: int
    folds: Sequence[_PseudoFold]

    def to_json(self) -> dict[str, object]:
        """Return all fields as JSON values."""
        return {**asdict(self), "file": str(self.file), "folds": [asdict(one) for one in self.folds]}


def make_pseudo_labels(
    run_dirs: Sequence[RunDir | Path | str],
    data: DataDir | Path | str,
    out: Path | str,
    *,
    confidence: float = 0.99,
    balanced: bool = False,
) -> PseudoSummary:
    """Write the test patches that the networks of a fold label with confidence, for each fold.

    Several runs are averaged fold by fold. A patch is malignant if the mean probability is at least `confidence`, and
    benign if it is at most 1 - `confidence`; all others are left out.

    Args:
        run_dirs: one or more predicted runs with the same fold file.
        data: folder with the sample submission, which has the test ids.
        out: the CSV to write.
        confidence: above 0.5, at most 1.
        balanced: keep equally many patches of both classes in each fold, the most confident.
    Returns:
        The number of pseudo-labels of each fold.
    Raises:
        UsageError: the confidence is out of range, or a run is given twice.
        RunError: a run lacks predictions or has other folds, or no patch reaches the confidence.
        TableError: a prediction file is invalid, or belongs to other test patches.
    """
    if not 0.5 < confidence <= 1:
        raise UsageError(f"--confidence is {confidence:g}", "it must be above 0.5 and at most 1")
    folders, data, out = [RunDir.at(run_dir) for run_dir in run_dirs], DataDir.at(data), Path(out)
    require_replaceable(out, PSEUDO_COLUMNS)
    names = label_runs(folders)
    test_ids = sorted(tables.read_sample(data.sample))
    folds = _read_shared_folds(folders)
    require_test_ids(test_ids, folds.ids, test_ids, data.sample)
    parts = [_mean_probabilities(folders, fold, test_ids) for fold in range(folds.k)]
    chosen = [_choose_confident(values, confidence, balanced=balanced) for values in parts]
    if not any(len(rows) for rows in chosen):
        highest = max(float(np.maximum(values, 1 - values).max()) for values in parts)
        found = f"no test patch is predicted with confidence {confidence:g}" + " in both classes" * balanced
        raise RunError(found, f"the highest is {highest:.4f}", "Give a lower --confidence")
    fold = np.repeat(np.arange(folds.k), [len(rows) for rows in chosen])
    values = np.concatenate([part[rows] for part, rows in zip(parts, chosen, strict=True)])
    ids = [test_ids[row] for rows in chosen for row in rows.tolist()]
    labels = (values > 0.5).astype(np.int8)
    counts = [_count_classes(number, labels[fold == number]) for number in range(folds.k)]
    about = {"confidence": confidence, "balanced": balanced, "runs": names, "folds": [asdict(one) for one in counts]}
    write_pseudo_file(out, sort_pseudo_labels(ids, fold, labels, values), folds, about)
    return PseudoSummary(file=out, test_patches=len(test_ids), folds=counts)


def _count_classes(fold: int, labels: NDArray[np.int8]) -> _PseudoFold:
    """Return the number of labels of each class."""
    malignant = int(labels.sum())
    return _PseudoFold(fold=fold, benign=len(labels) - malignant, malignant=malignant)


def _read_shared_folds(run_dirs: Sequence[RunDir]) -> Folds:
    """Return the folds that all runs share.

    Raises:
        RunError: a run has no fold file, or another one than the first.
    """
    found: list[Folds] = []
    for run_dir in run_dirs:
        if not run_dir.folds.exists():
            hint = "Give runs that claris train and claris predict made"
            raise run_dir.missing_error(run_dir.folds.name, "each fold needs predictions of its own", hint)
        found.append(read_folds(run_dir.folds))
        if found[-1].digest != found[0].digest:
            what = f"{run_dirs[0].root} and {run_dir.root} have different folds"
            raise RunError(what, "a network of one may have trained on validation patches of the other", "Remove one")
    return found[0]


def _mean_probabilities(run_dirs: Sequence[RunDir], fold: int, test_ids: list[str]) -> NDArray[np.float64]:
    """Return the mean over the runs of the test probabilities of fold number `fold`, in the order of `test_ids`.

    Raises:
        RunError: a run has no intact predictions of that fold.
        TableError: a file is invalid, or belongs to other test patches.
    """
    total = np.zeros(len(test_ids))
    for run_dir in run_dirs:
        fold_dir = run_dir.fold(fold)
        _require_own_predictions(fold_dir)
        part = read_test(fold_dir.test)
        tables.require_equal_ids(part.ids, test_ids, fold_dir.test, "sample_submission.csv", _PREDICT_AGAIN)
        total += part.probabilities
    return total / len(run_dirs)


def _require_own_predictions(fold_dir: FoldDir) -> None:
    """Raise unless the fold's `test.csv` is the file that its own network predicted.

    Raises:
        RunError: the file is missing, or is not the one that `predictions.json` describes.
    """
    missing = [path for path in (fold_dir.test, fold_dir.predictions_manifest) if not path.exists()]
    if missing:
        raise RunError(f"{missing[0]}: file not found", "expected the predictions of every fold", _PREDICT_AGAIN)
    if read_json(fold_dir.predictions_manifest).get("files", {}).get("test.csv") != sha256_file(fold_dir.test):
        raise RunError(f"{fold_dir.test}: not the predictions of this fold's network", "", _PREDICT_AGAIN)


def _choose_confident(values: NDArray[np.float64], confidence: float, *, balanced: bool) -> NDArray[np.int64]:
    """Return the rows whose probability, or its complement, is at least `confidence`, ascending.

    With `balanced`, keep the most confident rows of the larger class, as many as the smaller class has.
    """
    classes = [np.flatnonzero(class_probabilities >= confidence) for class_probabilities in (1 - values, values)]
    if balanced:
        count = min(len(rows) for rows in classes)
        certainty = np.maximum(values, 1 - values)
        classes = [rows[np.argsort(-certainty[rows], kind="stable")[:count]] for rows in classes]
    return np.sort(np.concatenate(classes))

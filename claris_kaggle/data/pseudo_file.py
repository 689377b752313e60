"""Files of pseudo-labels: labels that networks of a first round predicted for test patches, for each fold.

In a second round, fold k trains only on rows that fold k's networks of the first round predicted. These networks did
not train on the validation patches of fold k, so their predictions do not leak those labels. Networks of other folds
trained on these patches, so fold k never uses their rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.core.errors import DataError, DiskError, TableError, format_count, name_few
from claris_kaggle.core.files import read_json, write_json
from claris_kaggle.core.paths import require_replaceable
from claris_kaggle.data import tables
from claris_kaggle.data.arrays import Labels
from claris_kaggle.data.fold_file import Folds, parse_fold_numbers
from claris_kaggle.version import __version__

PSEUDO_COLUMNS = ("id", "fold", "label", "probability")
_TEST_ONLY = "only test patches may have pseudo-labels"
_PSEUDO_HINT = "Create such a file: claris pseudo RUN_DIR --data DIR --out FILE.csv"


@dataclass(frozen=True)
class PseudoLabels:
    """Pseudo-labels of test patches, sorted by id and fold.

    Attributes:
        ids: [N] ids of test patches; an id occurs at most once for each fold.
        fold: int64 [N], the fold that may train on the row.
        labels: int8 [N] of 0 and 1.
        probabilities: float64 [N] of label 1, the mean over the networks of the fold.
    """

    ids: list[str]
    fold: NDArray[np.int64]
    labels: Labels
    probabilities: NDArray[np.float64]

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of ids, folds and labels, independent of the row order."""
        return tables.digest_rows(self.ids, self.fold.tolist(), self.labels.tolist())

    def rows(self, fold: int) -> NDArray[np.int64]:
        """Return the rows of fold number `fold`, ascending."""
        return np.flatnonzero(self.fold == fold)


def write_pseudo_file(path: Path, pseudo: PseudoLabels, folds: Folds, about: Mapping[str, object]) -> None:
    """Write pseudo-labels, and a JSON beside them that binds them to the fold file.

    Args:
        path: the CSV to write.
        pseudo: the pseudo-labels.
        folds: the folds of the runs that predicted them.
        about: the origin of the pseudo-labels, added to the JSON.
    Raises:
        UsageError: the name does not end in .csv, or belongs to a file of another kind.
    """
    require_replaceable(path, PSEUDO_COLUMNS)
    columns = (pseudo.ids, pseudo.fold, pseudo.labels, pseudo.probabilities)
    tables.write_table(path, dict(zip(PSEUDO_COLUMNS, columns, strict=True)))
    digests = {"folds_sha256": folds.digest, "rows_sha256": pseudo.digest}
    write_json(path.with_suffix(".json"), {**digests, **about, "versions": {"claris_kaggle": __version__}})


def read_pseudo_file(path: Path, folds: Folds, test_ids: Sequence[str]) -> PseudoLabels:
    """Return the pseudo-labels in the file `path`, if a run with these folds may train on them.

    Args:
        path: a CSV from `claris pseudo`, with its JSON beside it.
        folds: the folds of the run.
        test_ids: ids of the test patches.
    Raises:
        TableError: the file is cut off, has invalid values, was changed, or has ids that are not test ids.
        DataError: its networks were trained with other folds, or its JSON is missing or damaged.
        DiskError: the file does not exist.
    """
    frame = tables.read_table(path, PSEUDO_COLUMNS, hint=_PSEUDO_HINT, ended=True)
    ids = frame["id"].tolist()
    tables.require_ids(ids, path, _PSEUDO_HINT)
    require_test_ids(ids, folds.ids, test_ids, path)
    fold = parse_fold_numbers(frame["fold"].tolist(), path, _PSEUDO_HINT)
    tables.require_unique(
        [f"{name} in fold {number}" for name, number in zip(ids, fold, strict=True)], path, _PSEUDO_HINT
    )
    labels = tables.parse_labels(frame["label"].tolist(), path)
    probabilities = tables.parse_probabilities(frame["probability"].tolist(), path, _PSEUDO_HINT)
    pseudo = sort_pseudo_labels(ids, fold, labels, probabilities)
    _require_own_folds(pseudo, folds, path)
    return pseudo


def sort_pseudo_labels(
    ids: Sequence[str], fold: NDArray[np.int64], labels: Labels, probabilities: NDArray[np.float64]
) -> PseudoLabels:
    """Return pseudo-labels sorted by id, then fold; arguments as the attributes of `PseudoLabels`."""
    order = sorted(range(len(ids)), key=lambda row: (ids[row], fold[row]))
    return PseudoLabels([ids[row] for row in order], fold[order], labels[order], probabilities[order])


def require_test_ids(ids: Sequence[str], train_ids: Sequence[str], test_ids: Sequence[str], path: Path) -> None:
    """Raise if an id is not that of a test patch. A training patch here would leak its label into its own fold.

    Raises:
        TableError: names the first such ids.
    """
    train, test = set(train_ids), set(test_ids)
    training_ids = sorted({name for name in ids if name in train})
    if training_ids:
        found = f"{path}: {format_count(len(training_ids), 'training id')} ({name_few(training_ids)})"
        raise TableError(found, _TEST_ONLY, _PSEUDO_HINT)
    foreign = sorted({name for name in ids if name not in test})
    if foreign:
        found = f"{path}: {format_count(len(foreign), 'id')} not in sample_submission.csv ({name_few(foreign)})"
        raise TableError(found, _TEST_ONLY, "Give the --data folder that it was made for")


def _require_own_folds(pseudo: PseudoLabels, folds: Folds, path: Path) -> None:
    """Raise unless the JSON beside the file shows that its rows are unchanged and belong to these folds.

    Raises:
        DataError: the JSON is missing or damaged, or the networks were trained with other folds.
        TableError: rows were changed.
    """
    json_path = path.with_suffix(".json")
    try:
        about = read_json(json_path)
    except (DataError, DiskError) as error:
        what = "claris pseudo writes it beside the CSV, and it says which folds the networks had"
        raise DataError(error.found, what, f"Put it beside {path.name}, or create both again") from error
    if about.get("rows_sha256") != pseudo.digest:
        raise TableError(f"{path}: its rows are not those that {json_path.name} describes", "", _PSEUDO_HINT)
    if about.get("folds_sha256") != folds.digest:
        expected = "its networks may have trained on the validation patches of this run"
        raise DataError(f"{path}: made with another fold file", expected, "Give --folds the fold file of those runs")

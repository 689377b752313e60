"""The file that Kaggle takes: written only when it passes every check, and checked on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.core.errors import TableError
from claris_kaggle.core.files import replace_file, sha256_file, write_json
from claris_kaggle.core.paths import require_replaceable
from claris_kaggle.data import tables
from claris_kaggle.evaluation.predictions import TestPredictions
from claris_kaggle.version import __version__

_SUBMISSION_COLUMNS = ("id", "label")
_SUBMISSION_HINT = "Write it again: claris ensemble RUN_DIR --data DIR --out submission.csv"


@dataclass(frozen=True)
class _Submission:
    """A submission's rows as they stand in the file.

    Attributes:
        name: of the file, for messages.
        ids: [N], each once.
        values: float64 [N] in 0..1: Kaggle tells apart what a float32 would not.
    """

    name: str
    ids: list[str]
    values: NDArray[np.float64]

    def by_id(self) -> NDArray[np.float64]:
        """The values in the order of the sorted ids."""
        return self.values[tables.sort_order(self.ids)]

    def is_constant(self) -> bool:
        """Whether several rows all have one value."""
        return len(self.values) > 1 and bool(self.values.min() == self.values.max())


def _read_submission(path: Path, called: Path | None = None) -> _Submission:
    """The rows of the file `path`; `called` is what messages call it, where it is a draft of another.

    Raises:
        TableError: it is no submission.
        DiskError: it is not there.
    """
    name = called or path
    frame = tables.read_table(path, _SUBMISSION_COLUMNS, hint=_SUBMISSION_HINT, ended=True)
    ids = frame["id"].tolist()
    tables.require_ids(ids, name, _SUBMISSION_HINT)
    tables.require_unique(ids, name, _SUBMISSION_HINT)
    return _Submission(str(name), ids, tables.parse_probabilities(frame["label"].tolist(), name, _SUBMISSION_HINT))


def check_submission(path: Path, sample_ids: Sequence[str], called: Path | None = None) -> dict[str, Any]:
    """What the submission holds, once it is known to be one that Kaggle will score as meant.

    Args:
        path: the CSV.
        sample_ids: the ids of the sample submission, in its order.
        called: what messages call the file, where it is a draft of another.
    Returns:
        rows, min, max and mean of the values, how many differ, the file's SHA-256, and whether the ids stand in the
        sample's order (Kaggle joins by id; another order is allowed).
    Raises:
        TableError: cut off, a wrong header, extra columns, missing, surplus or repeated ids, values that
            are no probabilities, or all of them the same.
        DiskError: it is not there.
    """
    one = _read_submission(path, called)
    tables.require_equal_ids(one.ids, sample_ids, called or path, "sample_submission.csv", _SUBMISSION_HINT)
    if one.is_constant():
        found = f"{one.name}: every value is {one.values[0]:g}"
        raise TableError(found, "a constant column scores 0.5", "Look at the predictions, or whether it is the sample")
    return {
        "rows": len(one.ids),
        "min": float(one.values.min()),
        "max": float(one.values.max()),
        "mean": float(one.values.mean()),
        "distinct": len(np.unique(one.values)),
        "sample_order": one.ids == list(sample_ids),
        "sha256": sha256_file(path),
    }


def write_submission(
    path: Path, test: TestPredictions, sample_ids: Sequence[str], about: dict[str, Any]
) -> dict[str, Any]:
    """Put the submission in place in the sample's order, if it passes `check_submission`, and a JSON beside it.

    Args:
        path: the CSV to write.
        test: predictions of exactly these ids.
        sample_ids: the ids of the sample submission, in its order.
        about: what the JSON should say of the origin.
    Returns:
        The content of the JSON.
    Raises:
        UsageError: the name does not end in .csv, or what is there is no submission of ours.
        TableError: the predictions do not make a submission; the files that were there stay.
    """
    require_replaceable(path, _SUBMISSION_COLUMNS)
    tables.require_equal_ids(test.ids, sample_ids, path, "sample_submission.csv", "Predict again on this data folder")
    value_of = dict(zip(test.ids, test.probabilities, strict=True))
    values = np.array([value_of[name] for name in sample_ids], dtype=np.float32)
    # Both are whole before either takes its name.
    with replace_file(path.with_suffix(".json")) as beside, replace_file(path) as draft:
        tables.write_table(draft, dict(zip(_SUBMISSION_COLUMNS, (list(sample_ids), values), strict=True)))
        facts = check_submission(draft, sample_ids, called=path)
        record = {**facts, **about, "versions": {"claris_kaggle": __version__}}
        write_json(beside, record)
    return record

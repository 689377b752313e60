"""Write a submission only if it passes every check, and check existing files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import TableError, format_count
from claris_kaggle.core.files import replace_file, sha256_file, write_json
from claris_kaggle.core.notebook import html_fields
from claris_kaggle.core.paths import require_replaceable
from claris_kaggle.data import tables
from claris_kaggle.evaluation.predictions import TestPredictions
from claris_kaggle.version import __version__

_SUBMISSION_COLUMNS = ("id", "label")
# Smallest share of tied rows that is reported.
_MIN_TIED_SHARE = 0.01
# Values with at most this many decimals count as rounded.
_MAX_ROUNDED_DECIMALS = 6
# With at least this many rows per distinct value, a remark says that there are few distinct values.
_MANY_ROWS_PER_VALUE = 20
_SUBMISSION_HINT = "Correct it, or create another: claris ensemble RUN_DIR --data DIR --out NEW.csv"
# If half precision holds all values and they have more decimals than this, they are probably not rounded decimals.
_HALF_DECIMALS = 3


@dataclass(frozen=True)
class _Submission:
    """The rows of a submission, in the order of the file.

    Attributes:
        name: name of the file, for messages.
        ids: N unique ids.
        values: float64 [N] in 0..1. float32 would merge values that Kaggle ranks differently.
    """

    name: str
    ids: list[str]
    values: NDArray[np.float64]

    def by_id(self) -> NDArray[np.float64]:
        """Return the values in the order of the sorted ids."""
        return self.values[tables.sort_order(self.ids)]

    def is_constant(self) -> bool:
        """Return True if there are several rows and all have the same value."""
        return len(self.values) > 1 and bool(self.values.min() == self.values.max())


def _read_submission(path: Path, called: Path | None = None) -> _Submission:
    """Read the file `path`. Messages use the name `called`, if given.

    Raises:
        TableError: the file is not a submission.
        DiskError: the file does not exist.
    """
    name = called or path
    frame = tables.read_table(path, _SUBMISSION_COLUMNS, hint=_SUBMISSION_HINT, ended=True)
    ids = frame["id"].tolist()
    tables.require_ids(ids, name, _SUBMISSION_HINT)
    tables.require_unique(ids, name, _SUBMISSION_HINT)
    return _Submission(str(name), ids, tables.parse_probabilities(frame["label"].tolist(), name, _SUBMISSION_HINT))


@dataclass(frozen=True)
class SubmissionSummary:
    """Facts about a submission that passed every check.

    Attributes:
        rows: number of rows.
        min, max, mean: of the values.
        distinct: number of distinct values.
        tied: number of rows that share their value with another row. Kaggle cannot rank them among each other.
        tie_remark: how many rows are tied and the likely cause, if at least 1 % of the rows are tied; else empty.
        sample_order: True if the ids have the order of the sample. Kaggle joins by id, so any order is allowed.
        sha256: SHA-256 of the file.
    """

    rows: int
    min: float
    max: float
    mean: float
    distinct: int
    tied: int
    tie_remark: str
    sample_order: bool
    sha256: str

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        return html_fields(vars(self))


def check_submission(path: Path | str, sample_ids: Sequence[str], called: Path | None = None) -> SubmissionSummary:
    """Check that Kaggle will accept and score the submission, and return a summary of it.

    Args:
        path: the CSV.
        sample_ids: the ids of the sample submission, in its order.
        called: the name to use in messages, if `path` is a temporary file.
    Raises:
        TableError: the file is cut off, has a wrong header, extra columns, missing, unexpected or repeated ids,
            values that are not probabilities, or the same value in every row.
        DiskError: the file does not exist.
    """
    path = Path(path)
    submission = _read_submission(path, called)
    tables.require_equal_ids(submission.ids, sample_ids, called or path, "sample_submission.csv", _SUBMISSION_HINT)
    if submission.is_constant():
        found = f"{submission.name}: every value is {submission.values[0]:g}"
        raise TableError(
            found, "a constant column scores 0.5", "Check the predictions; it may be the sample submission"
        )
    counts = np.unique(submission.values, return_counts=True)[1]
    tied = int(counts[counts > 1].sum())
    return SubmissionSummary(
        rows=len(submission.ids),
        min=float(submission.values.min()),
        max=float(submission.values.max()),
        mean=float(submission.values.mean()),
        distinct=len(counts),
        tied=tied,
        tie_remark=_explain_ties(submission.values, tied) if tied >= _MIN_TIED_SHARE * len(submission.values) else "",
        sample_order=submission.ids == list(sample_ids),
        sha256=sha256_file(path),
    )


def _explain_ties(values: NDArray[np.float64], tied: int) -> str:
    """Return how many rows share their value with another row, and the likely cause."""
    found = f"{tied:,} of {len(values):,} rows ({tied / len(values):.1%}) share their value with another row"
    return f"{found}, so Kaggle cannot rank them: {_find_tie_cause(values)}"


def _find_tie_cause(values: NDArray[np.float64]) -> str:
    """Return the likely cause of equal values: classes, rounding, half precision or values cut off at both ends."""
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) == 2:
        return "only two distinct values; submit probabilities, which give a higher AUC than classes"
    decimals = next(
        (digits for digits in range(_MAX_ROUNDED_DECIMALS + 1) if (values.round(digits) == values).all()), None
    )
    if decimals is not None and not (decimals > _HALF_DECIMALS and _find_half_precision(values)):
        return f"the values are rounded to {format_count(decimals, 'decimal')}; write them with all digits"
    ends = f"{int((values == 0).sum()):,} are exactly 0 and {int((values == 1).sum()):,} exactly 1"
    if kind := _find_half_precision(values):
        return f"every value is a number in {kind} ({ends}); apply the sigmoid or softmax in float32 or float64"
    if values.min() == 0 or values.max() == 1:
        return f"{ends}, from rounding or clipping; apply the sigmoid or softmax in float64, and do not clip"
    low, high = int(counts[0]), int(counts[-1])
    few = _MANY_ROWS_PER_VALUE * len(distinct) <= len(values)
    if not few and low + high > 2 and 2 * (low + high) >= counts[counts > 1].sum():
        found = f"{low:,} are {distinct[0]:.6g} and {high:,} are {distinct[-1]:.6g}, the smallest and largest value"
        return f"{found}; the values may be clipped"
    return f"there are only {len(distinct):,} distinct values"


def _find_half_precision(values: NDArray[np.float64]) -> str:
    """Return the name of the 16-bit floating-point type that holds all values; empty if there is none."""
    single = values.astype(np.float32)
    half = single.astype(np.float16)
    if (half.astype(np.float32) == single).all() or (half.astype(str).astype(np.float64) == values).all():
        return "half precision (fp16)"
    if not (single.view(np.uint32) & 0xFFFF).any():
        return "half precision (bf16)"
    return ""


def write_submission(
    path: Path | str, test: TestPredictions, sample_ids: Sequence[str], about: Mapping[str, object]
) -> dict[str, object]:
    """Write the submission in the order of the sample, and a JSON file next to it, if `check_submission` passes.

    Args:
        path: the CSV to write.
        test: predictions of exactly the ids in `sample_ids`.
        sample_ids: the ids of the sample submission, in its order.
        about: the origin of the submission, added to the JSON file.
    Returns:
        The content of the JSON file.
    Raises:
        UsageError: the name does not end in .csv, or `path` exists and is not a submission written by claris.
        TableError: the predictions are not a valid submission. Existing files are kept.
    """
    path = Path(path)
    require_replaceable(path, _SUBMISSION_COLUMNS)
    tables.require_equal_ids(
        test.ids, sample_ids, path, "sample_submission.csv", "Run claris predict again with this --data folder"
    )
    value_of = dict(zip(test.ids, test.probabilities, strict=True))
    values = np.array([value_of[name] for name in sample_ids], dtype=test.probabilities.dtype)
    # Both files are complete before either gets its final name.
    with replace_file(path.with_suffix(".json")) as json_draft, replace_file(path) as draft:
        tables.write_table(draft, dict(zip(_SUBMISSION_COLUMNS, (list(sample_ids), values), strict=True)))
        summary = check_submission(draft, sample_ids, called=path)
        record = {**asdict(summary), **about, "versions": {"claris_kaggle": __version__}}
        write_json(json_draft, record)
    if summary.tie_remark:
        log_info(f"{path}: {summary.tie_remark}")
    return record

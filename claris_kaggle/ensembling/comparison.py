"""Compare submissions and runs: rank correlation, largest differences, and files with rows out of order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.core.errors import RunError, UsageError, format_count
from claris_kaggle.core.paths import RunDir
from claris_kaggle.data import tables
from claris_kaggle.ensembling.blending import _to_ranks
from claris_kaggle.ensembling.combine import Ensemble, combine
from claris_kaggle.ensembling.runs import Run, _correlate_ranks, _load_runs, _share_slides, name_auc
from claris_kaggle.ensembling.submission_file import _read_submission, _Submission
from claris_kaggle.evaluation.auc_intervals import Comparison
from claris_kaggle.evaluation.metrics import auc

_SHOWN_DIFFERENCES = 5
# A pair of files with a lower rank correlation is reported as unrelated.
_UNRELATED_CORRELATION = 0.2
# A writing error is reported only if correcting it raises the correlation by at least `_MIN_IMPROVEMENT`, and by at
# least `_MIN_STANDARD_ERRORS` standard errors of a correlation of unrelated files (1 / sqrt(rows)).
_MIN_IMPROVEMENT, _MIN_STANDARD_ERRORS = 0.1, 5.0
# A submission with a lower rank correlation to the test predictions of its run was not made from them.
_SAME_FILE_CORRELATION = 0.99


@dataclass(frozen=True)
class _PatchDifference:
    """A patch that two submissions rank differently: its id, both values, and the difference of its ranks (0..1)."""

    id: str
    a: float
    b: float
    rank_difference: float


@dataclass(frozen=True)
class SubmissionPair:
    """Comparison of two submissions.

    Attributes:
        a, b: names of the files.
        rank_correlation: Spearman's correlation of the values.
        largest_differences: the patches with the largest rank differences.
        suspicious: True if something looks wrong.
        remark: what looks wrong, or that both files get the same score; else empty.
    """

    a: str
    b: str
    rank_correlation: float
    largest_differences: list[_PatchDifference]
    suspicious: bool
    remark: str


@dataclass(frozen=True)
class _BlendGain:
    """Comparison of the mean of several runs with the best run.

    Attributes:
        runs: OOF AUC of each run, by name.
        best: name of the run with the highest OOF AUC.
        mean: OOF AUC of the mean of the runs.
        gain: paired comparison of `mean` with the best run.
        remarks: warnings about runs and their files.
        auc_name: the name of the AUCs, as `name_auc` returns it.
    """

    runs: dict[str, float]
    best: str
    mean: float
    gain: Comparison
    remarks: list[str]
    auc_name: str


@dataclass(frozen=True)
class _SubmissionComparison:
    """Comparison of several submissions.

    Attributes:
        rows: number of ids.
        pairs: comparison of each two files.
        remarks: remarks on single files.
        blend: the OOF gain of the mean of the runs; None if no runs are given.
    """

    rows: int
    pairs: list[SubmissionPair]
    remarks: list[str]
    blend: _BlendGain | None

    def to_json(self) -> dict[str, object]:
        """Return all fields as JSON values, without `blend` if it is None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class _RunDifference:
    """Comparison of a run with the best run.

    Attributes:
        name: name of the run.
        correlation: Spearman's correlation of the OOF probabilities; None if the runs have different patches or labels.
        difference: AUC of the best run minus that of this run; None if the runs have different patches or labels.
    """

    name: str
    correlation: float | None = None
    difference: Comparison | None = None


@dataclass(frozen=True)
class RunComparison:
    """Comparison of several runs.

    Attributes:
        best: name of the run with the highest OOF AUC.
        rows: comparison of each other run with the best one.
        blend: the gain of the mean of all runs; None if they cannot be combined.
        members: what each run adds to the mean, by name, as in `EnsembleEvidence`.
        conflict: why the runs cannot be combined; empty if they can.
    """

    best: str
    rows: list[_RunDifference]
    blend: _BlendGain | None
    members: dict[str, Comparison]
    conflict: str


def compare_submissions(paths: Sequence[Path], run_dirs: Sequence[RunDir] = ()) -> _SubmissionComparison:
    """Compare submissions, joined by id.

    Args:
        paths: at least two files with the same ids.
        run_dirs: the run that each file was made from, in the order of `paths`. If given, the OOF gain of the mean of
            the runs is estimated.
    Raises:
        UsageError: fewer than two files, or the number of runs differs from the number of files.
        TableError: a file is invalid, or has different ids.
        RunError: the runs are not predicted yet, or have different folds, labels or test patches.
    """
    if len(paths) < 2:
        raise UsageError("one submission", "a comparison needs at least two", "Give another file")
    if run_dirs and len(run_dirs) != len(paths):
        raise UsageError(
            f"{len(run_dirs)} runs for {len(paths)} files", "expected one run per file, in their order", ""
        )
    files = [_read_submission(path) for path in paths]
    for path, file in zip(paths[1:], files[1:], strict=True):
        tables.require_equal_ids(file.ids, files[0].ids, path, files[0].name, "Compare files of the same test patches")
    pairs = [_compare_pair(a, b) for position, a in enumerate(files) for b in files[position + 1 :]]
    remarks = _find_outliers(files, pairs)
    blend = _compare_blend(files, run_dirs) if run_dirs else None
    return _SubmissionComparison(len(files[0].ids), pairs, remarks, blend)


def _compare_blend(files: Sequence[_Submission], run_dirs: Sequence[RunDir]) -> _BlendGain:
    """Return the gain of the mean of the runs, with remarks on files that do not match their run."""
    runs = _load_runs(run_dirs)
    found = _compare_mean_with_best(runs, combine(runs))
    return replace(found, remarks=[*found.remarks, *_find_mismatched_files(files, runs)])


def _find_outliers(files: Sequence[_Submission], pairs: Sequence[SubmissionPair]) -> list[str]:
    """Return remarks on single files: a constant file, or one that disagrees with all others while those agree."""
    remarks = [f"{file.name}: every value is {file.values[0]:g}" for file in files if file.is_constant()]
    odd = [pair for pair in pairs if pair.suspicious]
    for file in files if len(files) > 2 else []:
        pairs_of_file = [pair for pair in pairs if file.name in (pair.a, pair.b)]
        if pairs_of_file == odd:
            remarks.append(f"{file.name} disagrees with every other file")
    return remarks


def _compare_pair(a: _Submission, b: _Submission) -> SubmissionPair:
    """Return rank correlation, largest rank differences, and a remark."""
    ids, values_a, values_b = sorted(a.ids), a.by_id(), b.by_id()
    rank_differences = np.abs(_to_ranks(values_a) - _to_ranks(values_b))
    rows = [
        _PatchDifference(ids[row], float(values_a[row]), float(values_b[row]), float(rank_differences[row]))
        for row in np.argsort(-rank_differences, kind="stable")[:_SHOWN_DIFFERENCES]
        if rank_differences[row] > 0
    ]
    correlation = _correlate_ranks(values_a, values_b)
    remark = _explain_disagreement(a, b, correlation)
    shown_remark = remark if rows else "they rank all patches alike, so Kaggle gives them the same score"
    return SubmissionPair(a.name, b.name, correlation, rows, bool(remark), shown_remark)


def _explain_disagreement(a: _Submission, b: _Submission, correlation: float) -> str:
    """Return what is wrong between two files, or an empty string if they agree.

    Finds files that are inverted, shifted by rows, or have values in a different order than their ids.
    """
    if a.is_constant() or b.is_constant():
        return ""  # a constant correlates with nothing; `_find_outliers` reports it
    # In small files a wrong shift can fit by chance.
    min_improvement = max(_MIN_IMPROVEMENT, _MIN_STANDARD_ERRORS / np.sqrt(len(a.ids)))
    corrected, text = max(_try_corrections(a, b), key=lambda found: found[0])
    if corrected > correlation + min_improvement:
        return text.format(corrected)
    if correlation < _UNRELATED_CORRELATION and min_improvement < 1:
        return "they are almost uncorrelated: the rows of one of them may be out of order"
    return ""


def _try_corrections(a: _Submission, b: _Submission) -> list[tuple[float, str]]:
    """Return the rank correlation after correcting each possible writing error, with the message for that error.

    An error that may be in either file is before the errors of one file, which can have the same correlation.
    """
    inverted = -_correlate_ranks(a.by_id(), b.by_id())
    found = [(inverted, "one of them is inverted: it has the probability of benign")]
    if a.ids != b.ids:
        text = (
            "they correlate ({:.2f}) by row, but not by id: in one of them the values are not in the order of the ids"
        )
        found.append((_correlate_ranks(a.values, b.values), text))
    for file, other in ((a, b), (b, a)):
        if file.ids != sorted(file.ids):
            text = (
                f"they correlate ({{:.2f}}) if the values of {file.name} are matched to its sorted ids: "
                "its ids are in the wrong order"
            )
            found.append((_correlate_ranks(file.values, other.by_id()), text))
    return [*found, *_try_shifts(a, b), *(_try_shifts(b, a) if a.ids != b.ids else [])]


def _try_shifts(a: _Submission, b: _Submission) -> list[tuple[float, str]]:
    """Return the rank correlation if one file is shifted in the row order of `a`, with the message for it.

    Tries the shift with the values as they are and inverted.
    """
    found = []
    ranks_a, ranks_b = _to_ranks(a.values), _to_ranks(b.values[_match_order(b.ids, a.ids)])
    for sign, inversion in ((1, ""), (-1, " and inverted")):
        shift, correlation = _best_shift(ranks_a, ranks_b, sign)
        if shift:
            change = f"shifted by {format_count(abs(shift), 'row')}{inversion}"
            found.append(
                (correlation, f"they correlate ({{:.2f}}) if one is {change}: its values and ids do not match")
            )
    return found


def _match_order(ids: Sequence[str], target_ids: Sequence[str]) -> NDArray[np.int64]:
    """Return the row in `ids` of each id in `target_ids`."""
    row_of = {name: row for row, name in enumerate(ids)}
    return np.array([row_of[name] for name in target_ids], dtype=np.int64)


def _best_shift(a: NDArray[np.float64], b: NDArray[np.float64], sign: int = 1) -> tuple[int, float]:
    """Return the circular shift of `b` with the highest correlation to `a`, and that correlation.

    Computes all shifts at once by FFT.

    Args:
        a: ranks, float64 [N].
        b: ranks, float64 [N].
        sign: -1 to invert `b` as well.
    Returns:
        The shift in rows, from -N/2 to N/2, and the correlation.
    """
    a, b = a - a.mean(), sign * (b - b.mean())
    size = float(np.sqrt((a @ a) * (b @ b))) or 1.0
    correlations = np.fft.irfft(np.fft.rfft(a) * np.conj(np.fft.rfft(b)), len(a)) / size
    shift = int(np.argmax(correlations))
    return (shift if shift <= len(a) // 2 else shift - len(a)), float(correlations[shift])


def _compare_mean_with_best(runs: Sequence[Run], ensemble: Ensemble) -> _BlendGain:
    """Compare the OOF AUC of the runs' mean with the best run. The runs have the same slides or none."""
    aucs = {run.name: auc(run.oof.labels, run.oof.probabilities) for run in runs}
    best = max(runs, key=lambda run: aucs[run.name])
    return _BlendGain(
        runs=aucs,
        best=best.name,
        mean=auc(best.oof.labels, ensemble.oof.probabilities),
        gain=ensemble.measured.compare(best.measured),
        remarks=[f"{name}: {text}" for name, text in ensemble.evidence.remarks.items()],
        auc_name=name_auc(run.is_holdout for run in runs),
    )


def _find_mismatched_files(files: Sequence[_Submission], runs: Sequence[Run]) -> list[str]:
    """Return a remark for each file that does not match the test predictions of its run."""
    remarks = []
    for file, run in zip(files, runs, strict=True):
        if sorted(file.ids) != run.test.ids:
            remarks.append(f"{file.name}: other ids than the test predictions of {run.name}")
        elif (correlation := _correlate_ranks(file.by_id(), run.test.probabilities)) < _SAME_FILE_CORRELATION:
            remarks.append(
                f"{file.name} does not match the test predictions of {run.name}: rank correlation {correlation:.4f}"
            )
    return remarks


def compare_runs(runs: Sequence[Run]) -> RunComparison:
    """Compare each run with the one of the highest OOF AUC, and estimate the gain of their mean.

    Args:
        runs: two or more runs.
    """
    runs = _share_slides(runs)
    best = max(runs, key=lambda run: auc(run.oof.labels, run.oof.probabilities))
    blend, members, conflict = None, {}, ""
    try:
        ensemble = combine(runs)
        blend, members = _compare_mean_with_best(runs, ensemble), ensemble.evidence.members
    except RunError as error:
        conflict = error.found
    rows = [_compare_with(best, run) for run in runs if run is not best]
    return RunComparison(best.name, rows, blend, members, conflict)


def _compare_with(best: Run, run: Run) -> _RunDifference:
    """Return the comparison of a run with the best one."""
    if best.oof.ids != run.oof.ids or np.any(best.oof.labels != run.oof.labels):
        return _RunDifference(run.name)
    correlation = _correlate_ranks(best.oof.probabilities, run.oof.probabilities)
    return _RunDifference(run.name, correlation, best.measured.compare(run.measured))

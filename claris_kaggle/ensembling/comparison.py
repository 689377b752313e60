"""Compare submissions and runs: rank correlation, largest differences, and files with rows out of order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.core.errors import RunError, UsageError, format_count
from claris_kaggle.core.paths import RunDir
from claris_kaggle.data import tables
from claris_kaggle.ensembling.combine import combine
from claris_kaggle.ensembling.runs import Run, _load_runs
from claris_kaggle.ensembling.submission_file import _read_submission, _Submission
from claris_kaggle.evaluation.auc_intervals import compare_aucs
from claris_kaggle.evaluation.metrics import auc

_SHOWN_DIFFERENCES = 5
# Two files with a lower rank correlation are reported as unrelated.
_UNLIKE = 0.2
# A writing error is reported only if correcting it raises the correlation by at least `_BETTER`, and by at least
# `_CHANCES` standard errors of a correlation of unrelated files (1 / sqrt(rows)).
_BETTER, _CHANCES = 0.1, 5.0
# A submission with a lower rank correlation to the test predictions of its run was not made from them.
_SAME = 0.99
_Ranks = NDArray[np.float64]


def compare_submissions(paths: Sequence[Path], run_dirs: Sequence[RunDir] = ()) -> dict[str, Any]:
    """Compare submissions, joined by id.

    Args:
        paths: at least two files with the same ids.
        run_dirs: the run that each file was made from, in the order of `paths`. If given, the OOF gain of the mean of
            the runs is estimated.
    Returns:
        `rows`, the number of ids; `pairs`, for each two files the rank correlation, the ids with the largest
        differences and a `remark`; `remarks` on single files; `blend` with the OOF metrics if runs are given.
    Raises:
        UsageError: fewer than two files, or the number of runs differs from the number of files.
        TableError: a file is invalid, or has different ids.
        RunError: the runs are not predicted yet, or have different folds, labels or test patches.
    """
    if len(paths) < 2:
        raise UsageError("one submission", "two or more are needed to compare", "Name another file")
    if run_dirs and len(run_dirs) != len(paths):
        raise UsageError(f"{len(run_dirs)} runs for {len(paths)} files", "one for each is needed, in their order", "")
    files = [_read_submission(path) for path in paths]
    for path, one in zip(paths[1:], files[1:], strict=True):
        tables.require_equal_ids(one.ids, files[0].ids, path, files[0].name, "Compare files of the same test patches")
    pairs = [_compare_pair(a, b) for place, a in enumerate(files) for b in files[place + 1 :]]
    result: dict[str, Any] = {"rows": len(files[0].ids), "pairs": pairs, "remarks": _find_outliers(files, pairs)}
    if run_dirs:
        runs = _load_runs(run_dirs)
        result["blend"] = _expect_blend(runs)
        result["blend"]["remarks"] += _find_mismatched_files(files, runs)
    return result


def _find_outliers(files: Sequence[_Submission], pairs: Sequence[dict[str, Any]]) -> list[str]:
    """Return remarks on single files: constant, or in disagreement with every other file while those agree."""
    said = [f"{one.name}: every value is {one.values[0]:g}" for one in files if one.is_constant()]
    odd = [pair for pair in pairs if pair["odd"]]
    for one in files if len(files) > 2 else []:
        own = [pair for pair in pairs if one.name in (pair["a"], pair["b"])]
        if own == odd:
            said.append(f"{one.name} is at odds with all the others, which are at one")
    return said


def _compare_pair(a: _Submission, b: _Submission) -> dict[str, Any]:
    """Return rank correlation, largest rank differences, and a remark. `odd` is True if something looks wrong."""
    ids, of_a, of_b = sorted(a.ids), a.by_id(), b.by_id()
    ranks_a, ranks_b = _to_ranks(of_a), _to_ranks(of_b)
    apart = np.abs(ranks_a - ranks_b)
    rows = [
        {"id": ids[row], "a": float(of_a[row]), "b": float(of_b[row]), "ranks_apart": float(apart[row])}
        for row in np.argsort(-apart, kind="stable")[:_SHOWN_DIFFERENCES]
        if apart[row] > 0
    ]
    correlation = _correlate_ranks(ranks_a, ranks_b)
    remark = _explain_disagreement(a, b, correlation)
    return {
        "a": a.name, "b": b.name, "rank_correlation": correlation, "most_apart": rows, "odd": bool(remark),
        "remark": remark if rows else "they rank all patches alike, so that Kaggle scores them the same",
    }  # fmt: skip


def _to_ranks(values: NDArray[Any]) -> _Ranks:
    """Return the rank of each value, scaled to 0..1. Ties get their mean rank."""
    from scipy.stats import rankdata

    return np.asarray((rankdata(values) - 0.5) / len(values))


def _correlate_ranks(a: _Ranks, b: _Ranks) -> float:
    """Return the correlation of two columns of ranks (Spearman's). It is 0 if a column is constant."""
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else 0.0


def _explain_disagreement(a: _Submission, b: _Submission, correlation: float) -> str:
    """Return what is wrong between two files, or an empty string if they agree.

    Finds files that are inverted, shifted by rows, or have values in a different order than their ids.
    """
    if a.is_constant() or b.is_constant():
        return ""  # a constant correlates with nothing; `_find_outliers` reports it
    needed = max(_BETTER, _CHANCES / np.sqrt(len(a.ids)))  # in small files a wrong shift can fit by chance
    better, text = max(_arrangements(a, b))
    if better > correlation + needed:
        return text.format(better)
    if correlation < _UNLIKE and needed < 1:
        return "they have next to nothing in common: one of them may have its rows out of order"
    return ""


def _arrangements(a: _Submission, b: _Submission) -> list[tuple[float, str]]:
    """Return the rank correlation after correcting each possible writing error, with the message for that error."""
    rows_a, rows_b, by_id_a, by_id_b = map(_to_ranks, (a.values, b.values, a.by_id(), b.by_id()))
    found = [(-_correlate_ranks(by_id_a, by_id_b), "one of them is upside down: it holds the probability of benign")]
    if a.ids != b.ids:
        text = "they fit ({:.2f}) row by row instead of by id: one of them has its ids in another order than its values"
        found.append((_correlate_ranks(rows_a, rows_b), text))
    for one, values, others in ((a, rows_a, by_id_b), (b, rows_b, by_id_a)):
        if one.ids != sorted(one.ids):
            text = f"they fit ({{:.2f}}) if the values of {one.name} stand in the order of sorted ids, beside other ids"
            found.append((_correlate_ranks(values, others), text))
    return [*found, *_shifts(a, b), *(_shifts(b, a) if a.ids != b.ids else [])]


def _shifts(a: _Submission, b: _Submission) -> list[tuple[float, str]]:
    """Return the rank correlation if one file is shifted in the row order of `a`, with the message for it.

    Tries the shift with the values as they are and inverted.
    """
    found = []
    mine, others = _to_ranks(a.values), _to_ranks(b.values[_match_order(b.ids, a.ids)])
    for sign, twist in ((1, ""), (-1, " and turned upside down")):
        shift, fit = _best_shift(mine, others, sign)
        if shift:
            move = f"shifted by {format_count(abs(shift), 'row')}{twist}"
            found.append((fit, f"they fit ({{:.2f}}) if one is {move}: its values and ids are out of step"))
    return found


def _match_order(ids: Sequence[str], wanted: Sequence[str]) -> NDArray[np.int64]:
    """Return the row in `ids` of each id in `wanted`."""
    place = {name: row for row, name in enumerate(ids)}
    return np.array([place[name] for name in wanted], dtype=np.int64)


def _best_shift(a: _Ranks, b: _Ranks, sign: int = 1) -> tuple[int, float]:
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
    found = np.fft.irfft(np.fft.rfft(a) * np.conj(np.fft.rfft(b)), len(a)) / size
    shift = int(np.argmax(found))
    return (shift if shift <= len(a) // 2 else shift - len(a)), float(found[shift])


def _expect_blend(runs: Sequence[Run]) -> dict[str, Any]:
    """Compare the OOF AUC of the runs' mean with the best run. Return the gain with its interval, and warnings."""
    together = combine(runs)
    each = {run.name: auc(run.oof.labels, run.oof.probabilities) for run in runs}
    best = max(runs, key=lambda run: each[run.name])
    gain = compare_aucs(best.oof.labels, together.oof.probabilities, best.oof.probabilities, together.slides)
    return {
        "runs": each,
        "best": best.name,
        "mean": auc(best.oof.labels, together.oof.probabilities),
        "gain": gain.to_json(),
        "remarks": [f"{name}: {text}" for name, text in together.evidence["remarks"].items()],
    }


def _find_mismatched_files(files: Sequence[_Submission], runs: Sequence[Run]) -> list[str]:
    """Return a remark for each file that does not match the test predictions of its run."""
    remarks = []
    for one, run in zip(files, runs, strict=True):
        if sorted(one.ids) != run.test.ids:
            remarks.append(f"{one.name}: other ids than the test predictions of {run.name}")
        elif (fit := _correlate_ranks(_to_ranks(one.by_id()), _to_ranks(run.test.probabilities))) < _SAME:
            remarks.append(f"{one.name} is not what {run.name} predicts: rank correlation {fit:.4f}")
    return remarks


def compare_runs(runs: Sequence[Run]) -> dict[str, Any]:
    """Compare each run with the one of the highest OOF AUC, and estimate the gain of their mean.

    Args:
        runs: two or more runs.
    Returns:
        `best`: the name of the best run. `rows`: for each other run its name, the rank correlation of its OOF
        probabilities with those of the best run, and the paired difference of AUC (best minus this run) as in
        `Comparison`; both are None if the run has different patches or labels. `blend`: as in `_expect_blend`, or
        None if the runs cannot be combined; `apart` then has the reason.
    """
    best = max(runs, key=lambda run: auc(run.oof.labels, run.oof.probabilities))
    result: dict[str, Any] = {
        "best": best.name,
        "rows": [_compare_with(best, run) for run in runs if run is not best],
        "blend": None,
        "apart": "",
    }
    try:
        result["blend"] = _expect_blend(runs)
    except RunError as error:
        result["apart"] = error.found
    return result


def _compare_with(best: Run, run: Run) -> dict[str, Any]:
    """Return one row of `compare_runs`."""
    mine, yours = best.oof, run.oof
    if mine.ids != yours.ids or np.any(mine.labels != yours.labels):
        return {"name": run.name, "correlation": None, "difference": None}
    slides = best.slides or run.slides
    found = compare_aucs(mine.labels, mine.probabilities, yours.probabilities, slides)
    correlation = _correlate_ranks(_to_ranks(mine.probabilities), _to_ranks(yours.probabilities))
    return {"name": run.name, "correlation": correlation, "difference": found.to_json()}

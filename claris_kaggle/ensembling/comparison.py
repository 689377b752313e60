"""Submissions and runs side by side: how alike they are, where they differ most, and which one is out of order."""

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
# Two files whose ranks correlate less have nothing in common.
_UNLIKE = 0.2
# Another arrangement of the rows must fit better by this much, and by so many times what chance gives, to be named.
_BETTER, _CHANCES = 0.1, 5.0
# A submission that correlates less with the run behind it is not its own.
_SAME = 0.99
_Ranks = NDArray[np.float64]


def compare_submissions(paths: Sequence[Path], run_dirs: Sequence[RunDir] = ()) -> dict[str, Any]:
    """How the submissions compare, joined by id.

    Args:
        paths: at least two files over the same ids.
        run_dirs: the run behind each file, where known: then the gain of their mean is told from OOF.
    Returns:
        `pairs` with the rank correlation of each two, the ids they differ on most and a `remark`; `remarks` on
        single files; `blend` with the OOF figures where the runs are given.
    Raises:
        UsageError: fewer than two files, or not one run for each.
        TableError: a file is faulty, or of other ids.
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
    """What is to be said of a file alone: that it is constant, or at odds with all others, which are at one."""
    said = [f"{one.name}: every value is {one.values[0]:g}" for one in files if one.is_constant()]
    odd = [pair for pair in pairs if pair["odd"]]
    for one in files if len(files) > 2 else []:
        own = [pair for pair in pairs if one.name in (pair["a"], pair["b"])]
        if own == odd:
            said.append(f"{one.name} is at odds with all the others, which are at one")
    return said


def _compare_pair(a: _Submission, b: _Submission) -> dict[str, Any]:
    """Rank correlation, the largest differences of rank, and what looks wrong (`odd`)."""
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
    """Each value's place among all, 0..1, ties sharing the middle."""
    from scipy.stats import rankdata

    return np.asarray((rankdata(values) - 0.5) / len(values))


def _correlate_ranks(a: _Ranks, b: _Ranks) -> float:
    """Spearman's correlation of two columns of ranks; 0 where one is constant."""
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else 0.0


def _explain_disagreement(a: _Submission, b: _Submission, correlation: float) -> str:
    """What is wrong between two files: one upside down, shifted, or written in another order; nothing if they agree."""
    if a.is_constant() or b.is_constant():
        return ""  # a constant fits with nothing, and is named as such
    needed = max(_BETTER, _CHANCES / np.sqrt(len(a.ids)))  # by chance a shift of few rows fits as well
    better, text = max(_arrangements(a, b))
    if better > correlation + needed:
        return text.format(better)
    if correlation < _UNLIKE and needed < 1:
        return "they have next to nothing in common: one of them may have its rows out of order"
    return ""


def _arrangements(a: _Submission, b: _Submission) -> list[tuple[float, str]]:
    """How well the files fit if one was written wrongly, each with what to say then."""
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
    """How well the files fit if one was shifted in the order of `a`, upside down or not, with what to say then."""
    found = []
    mine, others = _to_ranks(a.values), _to_ranks(b.values[_match_order(b.ids, a.ids)])
    for sign, twist in ((1, ""), (-1, " and turned upside down")):
        shift, fit = _best_shift(mine, others, sign)
        if shift:
            move = f"shifted by {format_count(abs(shift), 'row')}{twist}"
            found.append((fit, f"they fit ({{:.2f}}) if one is {move}: its values and ids are out of step"))
    return found


def _match_order(ids: Sequence[str], wanted: Sequence[str]) -> NDArray[np.int64]:
    """The rows of `ids` in the order of `wanted`."""
    place = {name: row for row, name in enumerate(ids)}
    return np.array([place[name] for name in wanted], dtype=np.int64)


def _best_shift(a: _Ranks, b: _Ranks, sign: int = 1) -> tuple[int, float]:
    """The number of rows to move `b` by for the highest correlation, and that correlation; all at once by FFT.

    Args:
        sign: -1 where `b` is turned upside down as well.
    """
    a, b = a - a.mean(), sign * (b - b.mean())
    size = float(np.sqrt((a @ a) * (b @ b))) or 1.0
    found = np.fft.irfft(np.fft.rfft(a) * np.conj(np.fft.rfft(b)), len(a)) / size
    shift = int(np.argmax(found))
    return (shift if shift <= len(a) // 2 else shift - len(a)), float(found[shift])


def _expect_blend(runs: Sequence[Run]) -> dict[str, Any]:
    """The OOF AUC of the runs' mean against the best of them, with the gain's interval, and what speaks against it."""
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
    """Which files are not what the run at the same place predicts."""
    remarks = []
    for one, run in zip(files, runs, strict=True):
        if sorted(one.ids) != run.test.ids:
            remarks.append(f"{one.name}: other ids than the test predictions of {run.name}")
        elif (fit := _correlate_ranks(_to_ranks(one.by_id()), _to_ranks(run.test.probabilities))) < _SAME:
            remarks.append(f"{one.name} is not what {run.name} predicts: rank correlation {fit:.4f}")
    return remarks


def compare_runs(runs: Sequence[Run]) -> dict[str, Any]:
    """Each run against the one of the highest OOF AUC, on the same patches, and what their mean would be worth.

    Returns:
        `best`: its name; `rows`: for every other run its name, the rank correlation of its OOF probabilities with the
        best's, and the paired difference of AUC, the best minus it, as in `Comparison`; None for both where it is over
        other patches or labels. `blend`: as in `_expect_blend`; where the runs do not fit together `apart` says why.
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
    """One row of `compare_runs`."""
    mine, yours = best.oof, run.oof
    if mine.ids != yours.ids or np.any(mine.labels != yours.labels):
        return {"name": run.name, "correlation": None, "difference": None}
    slides = best.slides or run.slides
    found = compare_aucs(mine.labels, mine.probabilities, yours.probabilities, slides)
    correlation = _correlate_ranks(_to_ranks(mine.probabilities), _to_ranks(yours.probabilities))
    return {"name": run.name, "correlation": correlation, "difference": found.to_json()}

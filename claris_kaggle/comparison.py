"""Submissions and runs side by side: how alike they are, where they differ most, and which one is out of order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from claris_kaggle import tables
from claris_kaggle.ensemble import Run, combine, load_run
from claris_kaggle.errors import RunError, UsageError
from claris_kaggle.metrics import auc
from claris_kaggle.paths import RunDir
from claris_kaggle.submission import COLUMNS, MEND
from claris_kaggle.uncertainty import compare_aucs

SHOWN = 5
# Above this two files agree; below its negative one of them is upside down; near 0 one is out of order.
ALIKE, UNLIKE = 0.5, 0.2
Ranks = NDArray[np.float64]


@dataclass(frozen=True)
class Submission:
    """A submission's rows as they stand in the file: ids, and float32 values."""

    name: str
    ids: list[str]
    values: NDArray[np.float32]

    def by_id(self) -> NDArray[np.float32]:
        """The values in the order of the sorted ids."""
        return self.values[tables.sort_order(self.ids)]


def read_submission(path: Path) -> Submission:
    """The rows of the file.

    Raises:
        TableError: it is no submission.
        DiskError: it is not there.
    """
    frame = tables.read_table(path, COLUMNS, mend=MEND, ended=True)
    ids = frame["id"].tolist()
    tables.require_ids(ids, path, MEND)
    tables.require_unique(ids, path, MEND)
    return Submission(str(path), ids, tables.parse_probabilities(frame["label"].tolist(), path, MEND))


def compare_submissions(paths: Sequence[Path], run_dirs: Sequence[RunDir] = ()) -> dict[str, Any]:
    """How the submissions compare, joined by id.

    Args:
        paths: at least two files over the same ids.
        run_dirs: the run behind each file, where known: then the gain of their mean is told from OOF.
    Returns:
        `pairs` with the rank correlation of each two, the ids they differ on most, and `remarks`; `blend` with
        the OOF figures where the runs are given.
    Raises:
        UsageError: fewer than two files, or not one run for each.
        TableError: a file is faulty, or of other ids.
    """
    if len(paths) < 2:
        raise UsageError("one submission", "two or more are needed to compare", "Name another file")
    if run_dirs and len(run_dirs) != len(paths):
        raise UsageError(f"{len(run_dirs)} runs for {len(paths)} files", "one for each is needed, in their order", "")
    files = [read_submission(path) for path in paths]
    for path, one in zip(paths[1:], files[1:], strict=True):
        tables.require_equal_ids(one.ids, files[0].ids, path, files[0].name, "Compare files of the same test patches")
    pairs = [compare_pair(a, b) for place, a in enumerate(files) for b in files[place + 1 :]]
    result: dict[str, Any] = {"rows": len(files[0].ids), "pairs": pairs}
    if run_dirs:
        result["blend"] = expect_blend([load_run(run_dir) for run_dir in run_dirs])
    return result


def compare_pair(a: Submission, b: Submission) -> dict[str, Any]:
    """Rank correlation, the largest differences of rank, and what looks wrong."""
    ranks_a, ranks_b = to_ranks(a.by_id()), to_ranks(b.by_id())
    correlation = correlate(ranks_a, ranks_b)
    apart = np.abs(ranks_a - ranks_b)
    order = np.argsort(-apart, kind="stable")[:SHOWN]
    ids, of_a, of_b = sorted(a.ids), a.by_id(), b.by_id()
    rows = [
        {"id": ids[row], "a": float(of_a[row]), "b": float(of_b[row]), "ranks_apart": float(apart[row])}
        for row in order
    ]
    return {
        "a": a.name, "b": b.name, "rank_correlation": correlation, "most_apart": rows,
        "remark": explain(a, b, correlation),
    }  # fmt: skip


def to_ranks(values: NDArray[Any]) -> Ranks:
    """Each value's place among all, 0..1, ties sharing the middle."""
    from scipy.stats import rankdata

    return np.asarray((rankdata(values) - 0.5) / len(values))


def correlate(a: Ranks, b: Ranks) -> float:
    """Spearman's correlation of two columns of ranks; 0 where one is constant."""
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else 0.0


def explain(a: Submission, b: Submission, correlation: float) -> str:
    """What a low correlation comes from: one file upside down, shifted, or written in another order."""
    if correlation < -ALIKE:
        return "one of them is upside down: it holds the probability of benign"
    if correlation > UNLIKE:
        return ""
    for one, other in ((a, b), (b, a)):
        if correlate(to_ranks(one.values), to_ranks(other.by_id())) > ALIKE:
            return f"the values of {one.name} stand in the order of sorted ids, beside ids in another order"
    if correlate(to_ranks(a.values), to_ranks(b.values)) > ALIKE:
        return "their values fit row by row, but not by id: one of them has its ids in another order than its values"
    shift, best = best_shift(to_ranks(a.values), to_ranks(b.values[order_like(b.ids, a.ids)]))
    if best > ALIKE:
        return f"they fit when one is shifted by {abs(shift)} rows: values and ids of one of them are out of step"
    return "they have next to nothing in common: one of them may have its rows out of order"


def order_like(ids: Sequence[str], wanted: Sequence[str]) -> NDArray[np.int64]:
    """The rows of `ids` in the order of `wanted`."""
    place = {name: row for row, name in enumerate(ids)}
    return np.array([place[name] for name in wanted], dtype=np.int64)


def best_shift(a: Ranks, b: Ranks) -> tuple[int, float]:
    """The number of rows to move `b` by for the highest correlation, and that correlation; all at once by FFT."""
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b))) or 1.0
    found = np.fft.irfft(np.fft.rfft(a) * np.conj(np.fft.rfft(b)), len(a)) / size
    shift = int(np.argmax(found))
    return (shift if shift <= len(a) // 2 else shift - len(a)), float(found[shift])


def expect_blend(runs: Sequence[Run]) -> dict[str, Any]:
    """The OOF AUC of the runs' mean against the best of them, with the gain's interval."""
    together = combine(runs)
    each = {run.name: auc(run.oof.labels, run.oof.probabilities) for run in runs}
    best = max(runs, key=lambda run: each[run.name])
    gain = compare_aucs(best.oof.labels, together.oof.probabilities, best.oof.probabilities, together.slides)
    return {
        "runs": each,
        "best": best.name,
        "mean": auc(best.oof.labels, together.oof.probabilities),
        "gain": gain.to_json(),
    }


def compare_runs(runs: Sequence[Run]) -> dict[str, Any]:
    """Each run against the one of the highest OOF AUC, on the same patches, and what their mean would be worth.

    Returns:
        `best`: its name; `rows`: for every other run its name, the rank correlation of its OOF probabilities with the
        best's, and the paired difference of AUC, the best minus it, as in `Comparison`; None for both where it is over
        other patches or labels. `blend`: as in `expect_blend`; where the runs do not fit together `apart` says why.
    """
    best = max(runs, key=lambda run: auc(run.oof.labels, run.oof.probabilities))
    result: dict[str, Any] = {
        "best": best.name,
        "rows": [compare_with(best, run) for run in runs if run is not best],
        "blend": None,
        "apart": "",
    }
    try:
        result["blend"] = expect_blend(runs)
    except RunError as error:
        result["apart"] = error.found
    return result


def compare_with(best: Run, run: Run) -> dict[str, Any]:
    """One row of `compare_runs`."""
    mine, yours = best.oof, run.oof
    if mine.ids != yours.ids or np.any(mine.labels != yours.labels):
        return {"name": run.name, "correlation": None, "difference": None}
    slides = best.slides or run.slides
    found = compare_aucs(mine.labels, mine.probabilities, yours.probabilities, slides)
    correlation = correlate(to_ranks(mine.probabilities), to_ranks(yours.probabilities))
    return {"name": run.name, "correlation": correlation, "difference": found.to_json()}

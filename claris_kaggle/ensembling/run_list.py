"""List the runs of a folder with recipe, finished folds, AUC, leaderboard scores and training time."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.errors import ClarisError, UsageError
from claris_kaggle.core.files import explain_disk_errors, read_json
from claris_kaggle.core.paths import RunDir
from claris_kaggle.data import tables
from claris_kaggle.data.fold_file import read_folds
from claris_kaggle.ensembling.ledger import LedgerEntry, _parse_score
from claris_kaggle.ensembling.runs import add_slides, load_run
from claris_kaggle.evaluation.run_metrics import run_metrics


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A line of the list of runs. A value is None if it is unknown.

    Attributes:
        name: name of the run's folder.
        state: `predicted`, `not predicted`, `unfinished` or `damaged`; with predictions of another tool `predictions
            only` or `unreadable predictions`.
        problem: why the run cannot be read, or why the slide map cannot be used for it; else empty.
        model, preset: network and recipe.
        folds_finished, folds_total: number of folds.
        scored_on: what the AUC is of: `all folds`, one fold such as `fold 3`, or `holdout`.
        data_sha256: digest of the ids and labels of the scored patches.
        oof_auc, oof_interval: the AUC of all scored patches and its 95 % interval.
        oof_interval_by: `slide` if the interval resamples slides, `patch` if it assumes independent patches.
        public, private: the highest scores of submissions of this run alone, from the ledger.
        hours: training time of all folds.
    """

    name: str
    state: str
    problem: str = ""
    model: str | None = None
    preset: str | None = None
    folds_finished: int = 0
    folds_total: int | None = None
    scored_on: str | None = None
    data_sha256: str | None = None
    oof_auc: float | None = None
    oof_interval: tuple[float, float] | None = None
    oof_interval_by: str | None = None
    public: float | None = None
    private: float | None = None
    hours: float | None = None

    @property
    def has_all_folds(self) -> bool:
        """True if the AUC is of all folds."""
        return self.scored_on == "all folds"

    def to_json(self) -> dict[str, object]:
        """Return all fields as JSON values."""
        return asdict(self)


def list_runs(folder: Path, ledger: Sequence[LedgerEntry] = (), slide_map: Path | None = None) -> list[RunSummary]:
    """Return the runs in `folder`, sorted by AUC, highest first.

    Runs that are scored on a holdout or a single fold follow those with all folds. Runs without an AUC are last.

    A damaged run is listed as such and raises no error. Intervals are by slide for runs whose slides are known from
    their fold file or from `slide_map`, and by patch for the others.

    Args:
        folder: the folder that contains the folders of the runs.
        ledger: entries of the ledger, for public and private scores.
        slide_map: the slide map of the data, for runs whose fold file has no slides; None for no map.
    Raises:
        UsageError: `folder` does not exist or is not a folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder", "expected the folder that contains the runs")
    with explain_disk_errors(folder):
        folders = {path.parent for name in ("config.json", "oof.csv") for path in folder.glob(f"*/{name}")}
    found = [_with_scores(_list_run(RunDir(run_folder), slide_map), ledger) for run_folder in folders]
    return sorted(found, key=lambda run: (run.oof_auc is None, not run.has_all_folds, -(run.oof_auc or 0), run.name))


def find_best_run(runs: Sequence[RunSummary]) -> RunSummary | None:
    """Return the run with the highest AUC of those scored on all folds; None if their patches or labels differ."""
    complete = [run for run in runs if run.has_all_folds]
    if len({run.data_sha256 for run in complete}) != 1:
        return None
    return max(complete, key=lambda run: run.oof_auc or 0)


def _list_run(run_dir: RunDir, slide_map: Path | None) -> RunSummary:
    """Return the line of one run, without scores. A run that cannot be read gets a line with the problem."""
    is_own = run_dir.config.exists()
    try:
        line = _list_own_run(run_dir) if is_own else _list_foreign_run(run_dir)
        return _with_slides(line, run_dir, slide_map) if line.oof_interval_by == "patch" else line
    except (ClarisError, OSError) as error:
        problem = " ".join(str(error).split())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problem = f"a file of the run has wrong content ({type(error).__name__}: {error})"
    state = "damaged" if is_own else "unreadable predictions"
    return RunSummary(name=run_dir.root.name, state=state, problem=problem)


def _list_own_run(run_dir: RunDir) -> RunSummary:
    """Return the line of a run of this package."""
    config = TrainConfig.from_json(read_json(run_dir.config), run_dir.config)
    metrics = read_json(run_dir.metrics) if run_dir.metrics.exists() else {}
    finished = len(run_dir.finished_folds())
    total = len(metrics["folds"]) if metrics else _read_fold_count(run_dir)
    state = "predicted" if metrics else "not predicted" if finished == total else "unfinished"
    about: dict[str, Any] = {
        "model": config.model,
        "preset": config.preset,
        "folds_finished": finished,
        "folds_total": total,
        "scored_on": "all folds" if metrics.get("overall") else None,
        "data_sha256": config.data_sha256,
    }
    return RunSummary(
        name=run_dir.root.name,
        state=state,
        hours=_sum_training_hours(run_dir),
        **about,
        **_read_auc(metrics.get("overall", {})),
    )


def _list_foreign_run(run_dir: RunDir) -> RunSummary:
    """Return the line of predictions of another tool."""
    run = load_run(run_dir)
    metrics = run_metrics(run.oof, run.slides)
    one = "holdout" if run.is_holdout else f"fold {run.oof.fold[0]}"
    return RunSummary(
        name=run_dir.root.name,
        state="predictions only",
        folds_finished=0 if run.is_holdout else len(metrics.folds),
        folds_total=None if run.has_one_group else len(metrics.folds),
        scored_on=one if run.has_one_group else "all folds",
        data_sha256=tables.digest_rows(run.oof.ids, run.oof.labels),
        **_read_auc(metrics.overall.to_json()),
    )


def _with_slides(line: RunSummary, run_dir: RunDir, slide_map: Path | None) -> RunSummary:
    """Return the line with the interval by slide if the slide map exists and fits, as `ensemble` computes it."""
    if slide_map is None or not slide_map.exists():
        return line
    try:
        (run,) = add_slides([load_run(run_dir)], slide_map)
        estimate = run.measured.estimate
    except ClarisError as error:
        return replace(line, problem=" ".join(str(error).split()))
    return replace(line, oof_interval=estimate.interval, oof_interval_by=estimate.interval_by)


def _read_auc(overall: Mapping[str, Any]) -> dict[str, Any]:
    """Return OOF AUC and interval of the overall metrics; empty if there are none."""
    if not overall:
        return {}
    low, high = map(float, overall["auc_interval"])
    # Earlier versions wrote auc_way, with slides or DeLong.
    by_slide = overall.get("auc_interval_by") == "slide" or overall.get("auc_way") == "slides"
    by = "slide" if by_slide else "patch"
    return {"oof_auc": float(overall["auc"]), "oof_interval": (low, high), "oof_interval_by": by}


def _read_fold_count(run_dir: RunDir) -> int | None:
    """Return the number of folds of an unfinished run; None without a fold file."""
    return read_folds(run_dir.folds).k if run_dir.folds.exists() else None


def _sum_training_hours(run_dir: RunDir) -> float | None:
    """Return the training time in the histories of all folds; None without a history."""
    seconds = []
    for fold_dir in run_dir.fold_dirs().values():
        if fold_dir.history.exists():
            with fold_dir.history.open(newline="", encoding="utf-8") as stream:
                seconds += [float(row["seconds"]) for row in csv.DictReader(stream)]
    return sum(seconds) / 3600 if seconds else None


def _with_scores(run: RunSummary, ledger: Sequence[LedgerEntry]) -> RunSummary:
    """Return the line with the highest scores of submissions of this run alone."""
    best = {
        score: max((_parse_score(getattr(entry, score)) for entry in ledger if entry.runs == run.name), default=-1.0)
        for score in ("public", "private")
    }
    public, private = (value if value >= 0 else None for value in best.values())
    return replace(run, public=public, private=private)

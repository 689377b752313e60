"""List the runs of a folder, best AUC first: model, recipe, folds, AUC with interval, scores and training hours.

The AUC is that of all folds. Runs that are scored on a holdout or a single fold follow the others, and the column folds
says so. The best run with all folds is marked with * if all of these runs are scored on the same patches.
The 95 % interval is by slide if the slides of the patches are known, from the run's fold file or from the slide map in
--data. Otherwise it is by patch, and may be too narrow. Public and private scores are those of submissions of the run
alone, from the ledger.
Unfinished runs and runs that cannot be read are listed with their state.

example:
  claris runs
  claris runs runs --data data --json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from claris_kaggle.cli import options
from claris_kaggle.core.console import log_info

if TYPE_CHECKING:
    from claris_kaggle.ensembling.run_list import RunSummary

HELP = "list the runs of a folder, best first"
_RUN_HEADER = ("", "AUC", "interval", "public", "private", "folds", "hours", "model", "recipe", "state", "run")
_RUN_ROW = "{:<2}{:<9}{:<27}{:<9}{:<9}{:<8}{:<7}{:<16} {:<12} {:<23} {}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("runs"), metavar="DIR", help="folder that contains the runs [runs]"
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="the competition's folder; its slides.csv gives intervals by slide"
    )
    options._add_ledger_flag(parser)
    options._add_json_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Print the list."""
    slide_map = options._open_data(args).slides if args.data else None
    import json

    from claris_kaggle.ensembling.ledger import read_ledger
    from claris_kaggle.ensembling.run_list import find_best_run, list_runs

    runs = list_runs(args.folder, read_ledger(args.ledger), slide_map)
    best = find_best_run(runs)
    if args.json:
        print(json.dumps({"best": best and best.name, "runs": [summary.to_json() for summary in runs]}))
        return
    if not runs:
        log_info(f"{args.folder}: no runs in this folder")
        return
    print(_RUN_ROW.format(*_RUN_HEADER))
    for summary in runs:
        print(_format_run(summary, marked=summary is best))
    if best is None and any(summary.has_all_folds for summary in runs):
        log_info("no run is marked as the best: the runs with all folds are scored on different patches")
    for summary in runs:
        if summary.problem:
            log_info(f"{summary.name}: {summary.problem}")


def _format_run(summary: RunSummary, *, marked: bool) -> str:
    """Return the table row of a run."""
    scores = ["-" if value is None else f"{value:.4f}" for value in (summary.oof_auc, summary.public, summary.private)]
    interval = "-"
    if summary.oof_interval is not None:
        low, high = summary.oof_interval
        interval = f"{low:.4f} to {high:.4f} by {summary.oof_interval_by}"
    folds = f"{summary.folds_finished}/{'?' if summary.folds_total is None else summary.folds_total}"
    if summary.scored_on and not summary.has_all_folds:
        folds = summary.scored_on
    hours = "-" if summary.hours is None else f"{summary.hours:.1f}"
    mark, columns = "*" if marked else "", (summary.model or "-", summary.preset or "-", summary.state, summary.name)
    return _RUN_ROW.format(mark, scores[0], interval, *scores[1:], folds, hours, *columns)

"""Run the whole competition entry: push kernels (two at a time), wait, pull, ensemble, submit, wait for the score.

Run the same command to resume after an interruption; no step is repeated. Flags after -- are passed to claris train.

example:
  claris launch first --dry-run
  claris launch first
  claris launch second --per-fold --epochs 8 -- --seed 1
  claris launch gold --plan gold --dry-run
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claris_kaggle.cli import options

if TYPE_CHECKING:
    from claris_kaggle.kaggle.launch_state import PlanSummary
    from claris_kaggle.kaggle.plan_cost import RunsSummary

HELP = "train, predict, ensemble and submit on Kaggle with one command"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("name", metavar="NAME", help="name of the run; kernel names contain it")
    parser.add_argument(
        "--plan",
        default="",
        metavar="PLAN",
        help="the networks to train: starter, silver, gold (four, and their ensemble), or a TOML file [like silver]",
    )
    parser.add_argument("--per-fold", action="store_true", help="one kernel per fold [one for all folds]")
    parser.add_argument("--epochs", type=options._parse_count, metavar="N", help="number of epochs [from the recipe]")
    options._add_poll_flag(parser, 60)
    parser.add_argument("--time-limit", default="11h20m", metavar="TIME", help="time limit of each session [11h20m]")
    options._add_attached_input_flags(parser)
    options._add_named_file_flags(parser)
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs [runs]")
    parser.add_argument("--dry-run", action="store_true", help="print the plan without contacting Kaggle")
    options._add_ledger_flag(parser)
    options._add_json_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Launch or resume the entry, and print the ledger's line; with --dry-run, print the plan."""
    from claris_kaggle.kaggle.launch import run_launch
    from claris_kaggle.kaggle.launch_state import Plan, describe_plan
    from claris_kaggle.kaggle.preflight import check_plan

    options._require_session(args.time_limit)
    options._require_inputs(args)
    if args.plan:
        _launch_plan(args)
        return
    epochs = [] if args.epochs is None else ["--epochs", str(args.epochs)]
    plan = Plan(
        parts=tuple((fold,) for fold in range(5)) if args.per_fold else ((),),
        flags=options._check_train_flags([*epochs, *args.rest]),
        **_read_common_settings(args),
    )
    if args.dry_run:
        check_plan(plan)
        _print_plan(describe_plan(plan), as_json=args.json)
        return
    entry = run_launch(plan, args.runs / plan.name, args.ledger, poll=args.poll)
    _print_entry(plan.name, entry, as_json=args.json)


def _read_common_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of a plan that its runs share: the name, the time limit and the inputs."""
    from claris_kaggle.kaggle.launch_state import require_name

    return {
        "name": require_name(args.name),
        "time_limit": args.time_limit,
        "datasets": tuple(args.dataset),
        "models": tuple(args.model_input),
        **options._read_named_files(args),
    }


def _launch_plan(args: argparse.Namespace) -> None:
    """Launch or resume a plan of several runs, and print the ledger's line; with --dry-run, print the plan.

    Raises:
        UsageError: the plan is invalid, or a flag is given that the plan sets for each run.
    """
    from claris_kaggle.core.errors import UsageError
    from claris_kaggle.kaggle.launch_state import Plan
    from claris_kaggle.kaggle.plan_cost import check_runs, describe_runs, require_networks
    from claris_kaggle.kaggle.plan_file import read_plan
    from claris_kaggle.kaggle.plan_launch import run_plan

    given = {
        "--per-fold": args.per_fold,
        "--epochs": args.epochs is not None,
        "--weights-from": args.weights_from,
        "flags after --": args.rest,
    }
    conflicting = [name for name, value in given.items() if value]
    if conflicting:
        hint = "Write them into a plan file of your own; docs/kaggle.md describes it"
        raise UsageError(f"{' and '.join(conflicting)} with --plan", "the plan sets them for each run", hint)
    plan = read_plan(args.plan, Plan(**_read_common_settings(args)))
    require_networks(plan)
    if args.dry_run:
        check_runs(plan)
        _print_runs(describe_runs(plan), as_json=args.json)
        return
    entry = run_plan(plan, args.runs / plan.name, args.ledger, poll=args.poll)
    _print_entry(plan.name, entry, as_json=args.json)


def _print_entry(name: str, entry: Mapping[str, str], *, as_json: bool) -> None:
    """Print the ledger's line of a launch."""
    import json

    if as_json:
        print(json.dumps(entry))
        return
    scores = f"OOF AUC {entry['oof_auc']}, public {entry.get('public') or '?'}, private {entry.get('private') or '?'}"
    print(f"{name}: submission {entry['ref']} {entry['status'].lower()}, {scores}")


def _print_runs(summary: RunsSummary, *, as_json: bool) -> None:
    """Print the plan of several runs as a table."""
    import dataclasses
    import json

    if as_json:
        print(json.dumps(dataclasses.asdict(summary)))
        return
    print(f"plan     {summary.plan}: {summary.description}")
    header = ("run", "model", "size", "epochs", "folds", "kernels", "GFLOP", "hours", "week")
    rows = [
        (
            *(run.run, run.model, run.resolution, run.epochs, run.folds, len(run.kernels)),
            *(f"{run.gflop:.1f}", f"{run.hours:.1f}", run.week()),
        )
        for run in summary.runs
    ]
    widths = [max(len(str(row[column])) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, *rows]:
        texts = (f"{row[column]:<{widths[column]}}" for column in range(2))
        numbers = (f"{row[column]:>{widths[column]}}" for column in range(2, len(header)))
        print("  ".join(["", *texts, *numbers]).rstrip())
    inputs = dict.fromkeys(name for run in summary.runs for name in run.inputs)
    print(f"inputs   {', '.join(['the competition', *inputs])}")
    print(
        f"parallel {summary.parallel_sessions}; time limit {summary.time_limit}; then {', '.join(summary.next_steps)}"
    )
    weeks = "fits into one week" if summary.weeks == 1 else f"takes {summary.weeks} weeks"
    print(
        f"hours    about {summary.estimated_hours} on two T4s (estimated); the quota is {summary.weekly_hours:g} a "
        f"week: the plan {weeks}"
    )
    print(f"upload   {summary.upload_bytes:,} bytes, the library at {summary.commit}")


def _print_plan(summary: PlanSummary, *, as_json: bool) -> None:
    """Print the plan."""
    import dataclasses
    import json

    if as_json:
        print(json.dumps(dataclasses.asdict(summary)))
        return
    for kernel in summary.kernels:
        hours = "" if kernel.hours is None else f", about {kernel.hours} h"
        print(f"push     {kernel.slug}: folds {' '.join(map(str, kernel.folds))}, {kernel.machine}{hours}")
    flags = " ".join(summary.flags) or "default recipe"
    print(f"train    {flags}, time limit {summary.time_limit}")
    print(f"inputs   {', '.join(['the competition', *summary.inputs])}")
    print(f"parallel {summary.parallel_sessions}; then {', '.join(summary.next_steps)}")
    print(f"hours    {_describe_hours(summary)}")
    print(f"upload   {summary.upload_bytes:,} bytes, the library at {summary.commit}")


def _describe_hours(summary: PlanSummary) -> str:
    """Return the estimated hours beside the limits of a session and of a week, as text."""
    from math import ceil

    from claris_kaggle.core.time_limit import parse_duration
    from claris_kaggle.kaggle.kernel_push import MAX_SESSION_TEXT

    hours = [kernel.hours for kernel in summary.kernels if kernel.hours is not None]
    if summary.estimated_hours is None:
        return f"not known for {summary.network} on this machine; the quota is {summary.weekly_hours:g} a week"
    sessions = sum(max(1, ceil(3600 * kernel_hours / parse_duration(summary.time_limit))) for kernel_hours in hours)
    weeks = " (several weeks)" if summary.estimated_hours > summary.weekly_hours else ""
    return (
        f"about {summary.estimated_hours} on two T4s (estimated) for {summary.network}, {summary.gflop:.3g} GFLOP an "
        f"image; {sessions} session{'s' if sessions > 1 else ''} of at most {summary.time_limit} (Kaggle's limit is "
        f"{MAX_SESSION_TEXT}); the quota is {summary.weekly_hours:g} a week{weeks}"
    )

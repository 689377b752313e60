"""Check the networks of a plan of several runs, and estimate its GPU hours and weeks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from claris_kaggle.core.config import parse_config_flags
from claris_kaggle.core.errors import ClarisError, UsageError
from claris_kaggle.kaggle.kernel_source import commit_name
from claris_kaggle.kaggle.launch_state import _DEFAULT_FOLDS, _MAX_PARALLEL_SESSIONS, _WEEKLY_HOURS, Plan, _script_bytes
from claris_kaggle.kaggle.plan_file import _prefix_error, _RunsPlan
from claris_kaggle.kaggle.preflight import _check_recipe, _require_memory, check_plan


@dataclass(frozen=True, kw_only=True)
class _RunRow:
    """A run in the summary of a plan.

    Attributes:
        run, model, resolution, epochs: of the run.
        folds: number of folds.
        kernels: slugs of its kernels.
        gflop: of a forward pass for one image, in 1e9 floating-point operations.
        hours: estimated hours on two T4 GPUs.
        weeks: the first and the last week in which it runs, counted from 1.
        inputs: inputs besides the competition.
    """

    run: str
    model: str
    resolution: int
    epochs: int
    folds: int
    kernels: Sequence[str]
    gflop: float
    hours: float
    weeks: tuple[int, int]
    inputs: Sequence[str]

    def week(self) -> str:
        """Return the weeks as text, for example `1` or `1-2`."""
        first, last = self.weeks
        return str(first) if first == last else f"{first}-{last}"


@dataclass(frozen=True, kw_only=True)
class RunsSummary:
    """A summary of a plan of several runs, in the order of the output of `claris launch --plan --dry-run --json`.

    Attributes:
        plan, description: of the plan.
        runs: its runs.
        time_limit: of each session.
        parallel_sessions: number of sessions that run at the same time.
        next_steps: the steps after training.
        estimated_hours: hours on two T4 GPUs.
        weekly_hours: GPU hours that Kaggle gives in a week.
        weeks: number of weeks that the plan takes.
        upload_bytes: size of all scripts.
        commit: of the library.
    """

    plan: str
    description: str
    runs: Sequence[_RunRow]
    time_limit: str
    parallel_sessions: int
    next_steps: Sequence[str] = ("pull", "ensemble here", "submit", "wait for the score", "ledger", "report")
    estimated_hours: float
    weekly_hours: float = _WEEKLY_HOURS
    weeks: int
    upload_bytes: int
    commit: str


def require_networks(plan: _RunsPlan) -> None:
    """Check that each network of the plan exists, accepts its inputs, and has an input that a session can start from.

    Raises:
        UsageError: a network or a recipe does not; the message names the run.
    """
    from claris_kaggle.models.factory import pretrained_normalisation
    from claris_kaggle.training.setup import new_config

    for name, run in plan.runs.items():
        try:
            config = new_config(parse_config_flags(run.flags, run.weights_from))
            _check_recipe(config, run)
            _require_memory(config)  # counts one forward pass
            if config.normalise == "model":
                pretrained_normalisation(config.model)
        except UsageError as error:
            raise _prefix_error(error, f"{plan.source}, run {name}") from error


def check_runs(plan: _RunsPlan) -> None:
    """Check the sessions of all runs as `check_plan` does. This takes seconds for each network.

    Raises:
        ClarisError: as in `check_plan`; the message names the run.
    """
    for name, run in plan.runs.items():
        try:
            check_plan(run)
        except ClarisError as error:
            raise _prefix_error(error, f"{plan.source}, run {name}") from error


def describe_runs(plan: _RunsPlan) -> RunsSummary:
    """Return a summary of the plan, without contacting Kaggle."""
    hours = [run.hours() or 0.0 for run in plan.runs.values()]  # known: `require_networks` has counted them
    weeks = _spread_over_weeks(hours)
    kernels = sum(len(run.parts) for run in plan.runs.values())
    rows = [
        _describe_run_row(name, run, needed, span)
        for (name, run), needed, span in zip(plan.runs.items(), hours, weeks, strict=True)
    ]
    return RunsSummary(
        plan=plan.source,
        description=plan.description,
        runs=rows,
        time_limit=next(iter(plan.runs.values())).time_limit,
        parallel_sessions=min(_MAX_PARALLEL_SESSIONS, kernels),
        estimated_hours=round(sum(hours), 1),
        weeks=weeks[-1][1],
        upload_bytes=kernels * _script_bytes(),
        commit=commit_name(),
    )


def _describe_run_row(name: str, run: Plan, hours: float, weeks: tuple[int, int]) -> _RunRow:
    """Return the row of a run."""
    config = run.config()
    return _RunRow(
        run=name,
        model=config.model,
        resolution=config.side,
        epochs=config.epochs,
        folds=sum(len(part) or _DEFAULT_FOLDS for part in run.parts),
        kernels=[run.slug(number, 0) for number in range(len(run.parts))],
        gflop=round(cost.gflop, 2) if (cost := run.cost()) else 0.0,
        hours=round(hours, 1),
        weeks=weeks,
        inputs=run.inputs(),
    )


def _spread_over_weeks(hours: Sequence[float]) -> list[tuple[int, int]]:
    """Return the first and the last week of each run, if the runs use Kaggle's hours of a week one after the other.

    >>> _spread_over_weeks([10.0, 20.0, 5.0, 40.0])
    [(1, 1), (1, 1), (2, 2), (2, 3)]
    """
    weeks, start = [], 0.0
    for needed in hours:
        first = int(start // _WEEKLY_HOURS) + 1
        start += needed
        weeks.append((first, max(first, math.ceil(start / _WEEKLY_HOURS - 1e-9))))
    return weeks

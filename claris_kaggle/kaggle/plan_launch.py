"""Carry out a plan of several runs on Kaggle: train them two sessions at a time, combine them, submit, report.

Each run has its own state and its own kernels, as a launch of one run has. Folders of a launch:

    plan.json          the plan and the names of its runs
    sessions/RUN/      state, scripts and pulled parts of a run
    RUN/               the finished run
    sample/            the sample submission
    ensemble/          the ensemble as a run
    submission.csv     with its origin in submission.json
    report.html        all runs
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import KaggleError, RunError, UsageError
from claris_kaggle.core.files import hold_lock, read_json, write_json
from claris_kaggle.core.paths import RunDir
from claris_kaggle.ensembling.ensemble_runs import EnsembleResult, ensemble_runs
from claris_kaggle.kaggle import account, api
from claris_kaggle.kaggle.launch import _fetch_sample, _gather_parts, _open_launch, _train_parts
from claris_kaggle.kaggle.launch_state import _PLAN_FILE, _STATE_FILE, _Queue
from claris_kaggle.kaggle.plan_file import _ENSEMBLE, _SESSIONS, _prefix_error, _RunsPlan
from claris_kaggle.kaggle.submit import submit_file


def run_plan(plan: _RunsPlan, root: Path, ledger: Path, *, poll: float = 60.0) -> dict[str, str]:
    """Carry out the plan, or resume it, and return the ledger's line of the submission.

    Args:
        plan: what to launch.
        root: folder of the launch.
        ledger: CSV file of all submissions.
        poll: seconds between two status requests.
    Returns:
        The line of the ledger.
    Raises:
        ClarisError: a session failed, Kaggle refused, the week's hours are used up, the runs have different folds, or
            another plan was started under this name.
    """
    with hold_lock(root / ".lock"):
        _require_same_runs(plan, root)
        queue = _open_queue(plan, root, poll)
        account._prepare_account(*queue.launches)
        write_json(root / _PLAN_FILE, {"plan": plan.source, "runs": [*plan.runs]})
        try:
            _train_parts(queue)
        except KaggleError as error:
            if error is queue.used_up:
                raise _explain_used_up(error, plan) from error
            raise
        data, sample_ids = _fetch_sample(root)
        run_dirs = [RunDir(root / name) for name in plan.runs]
        for launch, run_dir in zip(queue.launches, run_dirs, strict=True):
            _gather_parts(launch, run_dir, sample_ids)
        _require_one_fold_file(run_dirs)
        submission = root / "submission.csv"
        keep = RunDir(root / _ENSEMBLE) if len(run_dirs) > 1 else None
        _log_ensemble(submission, ensemble_runs(run_dirs, data, submission, method="auto", keep=keep))
        entry = submit_file(submission, sample_ids, ledger, poll=min(poll, 30.0))
        _write_runs_report(run_dirs, root / "report.html", ledger)
        return entry


def _require_same_runs(plan: _RunsPlan, root: Path) -> None:
    """Reject a plan without runs that were started under this name. Runs may be added.

    Raises:
        RunError: the launch was started without a plan, or with other runs.
    """
    hint = "Use the same flags, or another NAME"
    if (root / _STATE_FILE).exists():
        raise RunError(f"{root / _STATE_FILE}: started without --plan", "", hint)
    if (root / _PLAN_FILE).exists():
        stored = read_json(root / _PLAN_FILE)
        missing = [name for name in stored["runs"] if name not in plan.runs]
        if missing:
            found = f"{root / _PLAN_FILE}: started with --plan {stored['plan']}, which has {', '.join(missing)}"
            raise RunError(found, "runs can only be added to a plan", hint)


def _open_queue(plan: _RunsPlan, root: Path, poll: float) -> _Queue:
    """Return the launches of all runs, ready to continue.

    Raises:
        ClarisError: Kaggle refused, or a run was started with other options.
    """
    user = ""
    queue = _Queue(plan.name, [], root.parent, poll=poll)
    for name, run in plan.runs.items():
        try:
            launch = _open_launch(root / _SESSIONS / name, run, user)
        except UsageError as error:
            raise _prefix_error(error, f"{plan.source}, run {name}") from error
        user, launch.queue = launch.user, queue
        queue.launches.append(launch)
    return queue


def _explain_used_up(error: KaggleError, plan: _RunsPlan) -> KaggleError:
    """Return the error for a plan that has used up the hours of the week, with the command that continues it."""
    hint = f"Finished sessions are pulled. Run {plan.command()} when the quota resets; {api._SETTINGS_PAGE} says when"
    return KaggleError(error.found, "", hint, refused=True)


def _require_one_fold_file(run_dirs: Sequence[RunDir]) -> None:
    """Reject runs with different fold files. Folds depend only on the data, the slide map and the seed.

    Raises:
        RunError: the folds of two runs differ.
    """
    first = run_dirs[0]
    for run_dir in run_dirs[1:]:
        for name in ("data_sha256", "folds_sha256"):
            first_digest, digest = (read_json(run.config).get(name) for run in (first, run_dir))
            if first_digest != digest:
                what = "patches" if name == "data_sha256" else "folds"
                found = f"{run_dir.root.name}: trained on other {what} than {first.root.name}"
                raise RunError(found, "expected one fold file for all runs", "Launch the plan under another NAME")


def _log_ensemble(submission: Path, result: EnsembleResult) -> None:
    """Log the AUC of each run and of the ensemble, and what each run adds."""
    for name, metrics in result.runs.items():
        contribution = result.ensemble.members.get(name)
        text = ""
        if contribution:
            low, high = contribution.interval
            text = f"; the mean without it differs by {contribution.difference:+.5f} ({low:+.5f} to {high:+.5f})"
        log_info(f"{name}: OOF AUC {metrics.auc:.4f}{text}")
    log_info(f"{submission}: {result.method} of {len(result.runs)} runs, OOF AUC {result.oof.auc:.4f}")


def _write_runs_report(run_dirs: Sequence[RunDir], out: Path, ledger: Path) -> None:
    """Write the report of all runs."""
    from claris_kaggle.reporting.report import write_report

    write_report(run_dirs, out, ledger=ledger)
    log_info(f"{out}: report of all runs")

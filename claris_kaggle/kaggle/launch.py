"""Run a full entry on Kaggle: push, wait, pull, resume after a time limit, ensemble, submit, record.

The state is saved before and after every action with an external effect. After an interruption the same call
resumes. An action whose response was lost is looked up by its push token before it is repeated.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from claris_kaggle.core.console import StatusLine, format_duration, log_info
from claris_kaggle.core.errors import KaggleError, RunError
from claris_kaggle.core.files import hold_lock, read_json
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data import tables
from claris_kaggle.data.fold_file import read_folds
from claris_kaggle.ensembling.ensemble_runs import ensemble_runs
from claris_kaggle.evaluation.run_metrics import gather_run
from claris_kaggle.kaggle import account, api, kernel_output, kernel_push, preflight
from claris_kaggle.kaggle.download import fetch_file
from claris_kaggle.kaggle.kernel_output import (
    _NotListedError,
    explain_failed_session,
    explain_session_end,
    kernel_status,
)
from claris_kaggle.kaggle.kernel_push import new_push_token
from claris_kaggle.kaggle.kernel_source import KernelSettings, compose_kernel
from claris_kaggle.kaggle.launch_state import _MAX_PARALLEL_SESSIONS, _PLAN_FILE, Plan, _Launch, _PartSession, _Queue
from claris_kaggle.kaggle.manifest import _merge_runs
from claris_kaggle.kaggle.session import _STOPPED, FAILED
from claris_kaggle.kaggle.session_progress import _ProgressReader
from claris_kaggle.kaggle.submit import submit_file

# Seconds: the maximum wait for a session or a temporary refusal, and the maximum pause between two refused pushes.
_MAX_SESSION_WAIT, _MAX_PUSH_PAUSE = 24 * 3600.0, 1800.0
_MAX_SESSIONS_PER_PART, _MAX_RENAMES = 12, 5
# The output of a failed session is requested at least this often, and for this share of its running time.
_MIN_FETCH_ATTEMPTS, _FETCH_WAIT_SHARE = 3, 0.1


def run_launch(plan: Plan, root: Path, ledger: Path, *, poll: float = 60.0) -> dict[str, str]:
    """Carry out the plan, or resume it, and return the ledger's line of the submission.

    Args:
        plan: what to launch.
        root: folder of the launch.
        ledger: CSV file of all submissions.
        poll: seconds between two status requests.
    Returns:
        The line of the ledger.
    Raises:
        ClarisError: a session failed, Kaggle refused, or another plan was started under this name.
    """
    with hold_lock(root / ".lock"):
        if (root / _PLAN_FILE).exists():
            source = read_json(root / _PLAN_FILE)["plan"]
            raise RunError(f"{root}: started with --plan {source}", "", "Give the same --plan, or another NAME")
        launch = _open_launch(root, plan)
        launch.queue.poll = poll
        account._prepare_account(launch)
        _train_parts(launch.queue)
        submission, sample_ids = _build_submission(launch)
        return submit_file(submission, sample_ids, ledger, poll=min(poll, 30.0))


def _open_launch(root: Path, plan: Plan, user: str = "") -> _Launch:
    """Return the launch in this folder, ready to continue: each failed part has its next session.

    Args:
        root: folder of the launch.
        plan: what to launch.
        user: name of the account; empty to ask Kaggle at the first start.
    Raises:
        ClarisError: Kaggle refused, or another plan was started under this name.
    """
    launch = _Launch(root, plan, _was_accepted)
    preflight._check_first_push(launch)
    if not launch.user:
        launch.user = user or api.find_user()
        launch.save()
    _remove_partial_pulls(root)
    _schedule_retries(launch)
    return launch


def _remove_partial_pulls(root: Path) -> None:
    """Remove the partial files of killed pulls."""
    for folder in root.glob("parts/*/.pull-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _was_accepted(session: _PartSession) -> bool:
    """Return True if Kaggle accepted the session's kernel. Asks Kaggle if the response was lost."""
    if session.version or session.outcome == FAILED:
        return bool(session.version)
    return (
        session.push_attempted
        and api._poll_until_found(lambda: kernel_push._find_push(session.ref, session.push_token, {})) is not None
    )


def _schedule_retries(launch: _Launch) -> None:
    """Add a new session for each part whose session failed. It resumes from the pulled output, or starts again."""
    for number, part in enumerate(launch.sessions):
        if part and part[-1].outcome == FAILED:
            action = f"resuming with its finished folds ({part[-1].pulled_output or 'its folds'})"
            log_info(f"{part[-1].ref} failed before: {action if part[-1].resumable else 'pushing it again'}")
            part.append(_plan_session(launch, number))
    launch.save()


def _plan_session(launch: _Launch, number: int) -> _PartSession:
    """Return the next session of a part. It has a new slug unless the last session failed without output."""
    part = launch.sessions[number]
    session = _PartSession(push_token=new_push_token(launch.plan.name), ref="")
    last = part[-1] if part else None
    if last is None or last.resumable or last.outcome != FAILED:
        session.ref = f"{launch.user}/{launch.plan.slug(number, len(part))}"
    elif last.left_empty_kernel:
        _rename_session(launch, number, session)
    else:
        session.ref = last.ref
    return session


def _rename_session(launch: _Launch, number: int, session: _PartSession) -> None:
    """Give the session an unused slug. A refused first push can leave an empty kernel under its slug."""
    slug = launch.plan.slug(number, max(0, len(launch.sessions[number]) - 1))
    session.ref = f"{launch.user}/{kernel_push._unused_slug(slug, session.push_token)}"


def _train_parts(queue: _Queue) -> None:
    """Push the training kernels, two at a time, until every part is complete and pulled.

    Raises:
        KaggleError: a session failed, or the week's hours are used up. The other sessions are pulled first.
    """
    failed: dict[tuple[str, int], KaggleError] = {}
    logged, reader = "", _ProgressReader()

    def remaining() -> list[tuple[_Launch, int]]:
        parts = [(launch, part) for launch in queue.launches for part in range(len(launch.sessions))]
        return [
            (launch, part)
            for launch, part in parts
            if (launch.plan.name, part) not in failed and not launch.complete(part)
            if not (queue.used_up and launch.needs_push(part))
        ]

    with StatusLine() as waiting:
        while remaining():
            for launch, part in remaining():
                error = _step_part_with_retries(launch, part)
                if error is not None:
                    failed[launch.plan.name, part] = error
            table = "\n".join(map(_format_status, queue.launches))
            if table != logged:
                log_info(table)
                logged = table
            if remaining():
                waiting.show(_describe_wait(queue, reader))
                time.sleep(queue.poll)
    errors = [*filter(None, [queue.used_up]), *failed.values()]
    for error in errors[1:]:
        log_info(error.found)
    if errors:
        raise errors[0]


def _step_part_with_retries(launch: _Launch, part: int) -> KaggleError | None:
    """Do the next step of a part. Temporary failures are logged, and the step is repeated at the next poll.

    Returns:
        The error of a failed session, which does not concern the other parts; else None.
    Raises:
        KaggleError: a permanent failure, or a temporary one that lasts longer than a session can.
    """
    try:
        _step_part(launch, part)
    except KaggleError as error:
        session = launch.sessions[part][-1]
        if session.version and session.outcome == FAILED:
            return error
        if len(launch.queue.launches) > 1 and kernel_push._is_quota_used(error):
            launch.queue.used_up = error
            return None
        if not error.retryable or time.time() - session.started > _MAX_SESSION_WAIT:
            raise
        log_info(f"{session.ref}: {error.found}; checking again later")
    return None


def _describe_wait(queue: _Queue, reader: _ProgressReader) -> str:
    """Return the progress of the running sessions from their logs, and the estimated time left for the plan."""
    now, parts = time.time(), [sessions for launch in queue.launches for sessions in launch.sessions]
    running = [sessions[-1] for sessions in parts if sessions and sessions[-1].running and sessions[-1].version]
    progress = ", ".join(
        reader.describe(session.kernel(), session.status or "PUSHED", now - session.started) for session in running
    )
    spent_seconds = sum(
        (session.ended or now) - session.started for sessions in parts for session in sessions if session.version
    )
    hours = queue.total_hours()
    seconds_left = (3600 * (hours or 0.0) - spent_seconds) / max(len(running), 1)
    estimate = f"about {format_duration(seconds_left)} left" if seconds_left > 0 else "longer than estimated"
    estimate = "time left unknown" if hours is None else estimate
    return f"{queue.name}: {progress or 'waiting for a free session'}; {estimate}"


def _format_aucs(folder: Path) -> str:
    """Return the validation AUC of each pulled fold in the folder, as text."""
    manifests = sorted((folder / "run").glob("fold[0-9]*/model.json"))
    return ", ".join(f"{manifest.parent.name} AUC {read_json(manifest)['auc']:.4f}" for manifest in manifests)


def _step_part(launch: _Launch, part: int) -> None:
    """Do the next step of a part: start a session, push it, poll it or pull it.

    Raises:
        KaggleError: its session failed, was cancelled or never ends.
    """
    sessions = launch.sessions[part]
    if launch.complete(part):
        return
    if not sessions or not sessions[-1].running:
        if launch.queue.active() >= _MAX_PARALLEL_SESSIONS or launch.queue.used_up:
            return
        if len(sessions) >= _MAX_SESSIONS_PER_PART:
            raise KaggleError(f"{sessions[-1].ref}: not finished after {len(sessions)} sessions", "", "See its log")
        sessions.append(_plan_session(launch, part))
        launch.save()
    if not sessions[-1].version:
        _push_part(launch, part)
    else:
        _poll_session(launch, part)


def _push_part(launch: _Launch, part: int) -> None:
    """Push the part's newest session. Does nothing until the time of the next push.

    Raises:
        KaggleError: refused, or accepted without one of its inputs. The session has then failed.
    """
    session, plan = launch.sessions[part][-1], launch.plan
    if time.time() < launch.queue.next_push or launch.queue.used_up:
        return
    slug = session.ref.split("/")[1]
    folder = launch.root / "kernels" / slug
    inputs = tuple(earlier.output for earlier in launch.sessions[part][:-1] if earlier.resumable)[-1:]
    settings = KernelSettings(
        folds=plan.parts[part],
        flags=plan.flags,
        time_limit=plan.time_limit,
        inputs=inputs,
        datasets=plan.datasets,
        models=plan.models,
        **plan.named_files,
    )
    compose_kernel("train", folder, settings, user=launch.user, slug=slug, push_token=session.push_token)
    search_first, session.push_attempted = session.push_attempted, True
    launch.save()
    try:
        kernel = kernel_push._push_kernel(folder, session.push_token, search_first=search_first, optional=inputs)
    except KaggleError as error:
        if not (error.session_limit or error.refused):
            raise
        _record_refusal(launch, part, error)
        if session.running:
            return  # to be pushed again
        raise
    kernel_push.record_push(launch.queue.records / kernel_push._PUSH_RECORD, kernel, job="train")
    session.version, session.started, session.limit = kernel.version, time.time(), kernel.limit
    launch.queue.limit_refusals, launch.queue.next_push = 0, 0.0
    launch.save()


def _record_refusal(launch: _Launch, part: int, error: KaggleError) -> None:
    """Record that the push was refused. A temporary refusal is retried later, any other ends the session."""
    session, queue = launch.sessions[part][-1], launch.queue
    has_version = any(other.version for other in launch.sessions[part] if other.ref == session.ref)
    session.left_empty_kernel = error.no_version and not has_version
    if kernel_push._needs_new_name(error) and queue.renamed < _MAX_RENAMES:
        queue.renamed += 1
        session.push_token, session.push_attempted = new_push_token(launch.plan.name), False
        _rename_session(launch, part, session)
        log_info(f"{error.found}; using the name {session.ref}")
    elif error.session_limit and time.time() - session.started <= _MAX_SESSION_WAIT:
        pause = min(queue.poll * 2**queue.limit_refusals, _MAX_PUSH_PAUSE)
        queue.limit_refusals, queue.next_push = queue.limit_refusals + 1, time.time() + pause
        log_info(f"{session.ref}: {error.found}; pushing again in {format_duration(pause)}")
        # Kaggle may have saved a version that never runs. A new push token avoids that it is found.
        session.push_token, session.push_attempted = new_push_token(launch.plan.name), False
        if session.left_empty_kernel:
            _rename_session(launch, part, session)
    else:
        session.outcome, session.ended = FAILED, time.time()
    launch.save()


def _poll_session(launch: _Launch, part: int) -> None:
    """Request the state of the part's newest session, and pull its output when it has ended.

    Raises:
        KaggleError: it failed, was cancelled or never ends; or its output is not listed yet, which is temporary.
    """
    session = launch.sessions[part][-1]
    session.status, message = kernel_status(session.kernel())
    if session.status in kernel_output.END_STATES:
        session.ended, session.fetch_attempts = session.ended or time.time(), session.fetch_attempts + 1
        launch.queue.next_push = 0.0  # a session is free
        launch.save()
        if session.status == "COMPLETE":
            _pull_complete(launch, part)
        else:
            _pull_failed(launch, part, message)
    elif time.time() - session.started > _MAX_SESSION_WAIT:
        hours = _MAX_SESSION_WAIT / 3600
        found = f"{session.ref} version {session.version} is {session.status.lower()} for {hours:.0f} hours"
        raise KaggleError(found, "", "Cancel it on the web page, then run the same command again")


def _pull_complete(launch: _Launch, part: int) -> None:
    """Pull the output of a session that Kaggle reports as complete.

    Raises:
        _NotListedError: its output is not listed yet; try again.
        KaggleError: its manifest says that it failed, or its output is not available.
    """
    session, folder = launch.sessions[part][-1], launch.folder(part)
    try:
        output = kernel_output._fetch_output(session.kernel(), folder)
    except _NotListedError as error:
        if time.time() - session.ended > kernel_output._LISTING_LAG:
            hint = f"See {api._CODE_PAGE}/{session.ref}, and run the same command again"
            raise KaggleError(error.found, error.expected, hint) from error
        raise
    session.outcome, session.ended = output.status, time.time()
    session.pulled_output = output.folds() if output.status == FAILED else ""
    launch.save()
    if session.outcome == FAILED:
        raise explain_failed_session(session.kernel(), output, folder)


def _pull_failed(launch: _Launch, part: int, message: str) -> None:
    """Pull the finished work of a session that failed, was cancelled or timed out. A timed-out session is resumed.

    Raises:
        _NotListedError: nothing is listed yet; try again.
        KaggleError: it failed or was cancelled, or none of its output is usable.
    """
    session, folder = launch.sessions[part][-1], launch.folder(part)
    kernel = session.kernel()
    try:
        output = kernel_output._fetch_output(kernel, folder, require_all=False)
        session.pulled_output = output.folds() if output.files else ""
    except _NotListedError:
        waited, ran = time.time() - session.ended, session.ended - session.started
        if session.fetch_attempts < _MIN_FETCH_ATTEMPTS or waited < min(
            kernel_output._LISTING_LAG, _FETCH_WAIT_SHARE * ran
        ):
            raise
    log = kernel_output.session_log(kernel)
    error = explain_session_end(kernel, session.status, message, log, out=folder, pulled_output=session.pulled_output)
    timed_out = kernel_output._is_timed_out(kernel, session.status, kernel_output._session_seconds(kernel, log))
    session.outcome = _STOPPED if timed_out and session.pulled_output else FAILED
    launch.save()
    if session.outcome == FAILED:
        raise error
    log_info(f"{error.found}; resuming with its finished folds ({session.pulled_output})")


def _format_status(launch: _Launch) -> str:
    """Return the state of all parts, one line each."""
    lines = []
    for part, sessions in enumerate(launch.sessions):
        state = "waiting" if not sessions else sessions[-1].outcome or sessions[-1].status.lower() or "pushed"
        name = sessions[-1].ref if sessions else launch.plan.slug(part, 0)
        found = _format_aucs(launch.folder(part)) if launch.complete(part) else ""
        lines.append(f"  {name:<44} {state}" + (f" ({found})" if found else ""))
    return "\n".join(lines)


def _count_views(run_dir: RunDir) -> object:
    """Return the number of test-time augmentation views of the first fold's predictions; None if unknown."""
    manifest = run_dir.fold(0).predictions_manifest
    return read_json(manifest).get("views") if manifest.exists() else None


def _fetch_sample(root: Path) -> tuple[DataDir, Sequence[str]]:
    """Return the folder with the sample submission, downloaded once, and the ids in it."""
    data = DataDir(root / "sample")
    if not data.sample.exists():
        fetch_file(data.sample.name, data.root)
    return data, tables.read_sample(data.sample)


def _gather_parts(launch: _Launch, run_dir: RunDir, sample_ids: Sequence[str]) -> None:
    """Merge the pulled parts of a launch into one run with the predictions and metrics of all its folds.

    Raises:
        ClarisError: the parts belong to different runs, or lack predictions.
    """
    _merge_runs([RunDir(launch.folder(part) / "run") for part in range(len(launch.plan.parts))], run_dir)
    gather_run(run_dir, read_folds(run_dir.folds), sample_ids, {"views": _count_views(run_dir)})


def _build_submission(launch: _Launch) -> tuple[Path, Sequence[str]]:
    """Merge the parts into one run, write its checked submission, and return its path and the sample's ids.

    Raises:
        ClarisError: the parts belong to different runs, or the predictions are not a valid submission.
    """
    run_dir = RunDir(launch.root / "run")
    data, sample_ids = _fetch_sample(launch.root)
    _gather_parts(launch, run_dir, sample_ids)
    submission = launch.root / "submission.csv"
    result = ensemble_runs([run_dir], data, submission)
    log_info(f"{submission}: OOF AUC {result.oof.auc:.4f}")
    return submission, sample_ids

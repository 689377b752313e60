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
from claris_kaggle.kaggle.launch_state import _MOST_SESSIONS, _PLAN_FILE, Plan, _Launch, _Queue, _Round
from claris_kaggle.kaggle.manifest import _merge_runs
from claris_kaggle.kaggle.session import _STOPPED, FAILED
from claris_kaggle.kaggle.session_progress import _ProgressReader
from claris_kaggle.kaggle.submit import submit_file

# Seconds: how long a session or a refusal that passes is waited for, and the longest pause between two refused pushes.
_PATIENCE, _LONGEST_HOLD = 24 * 3600.0, 1800.0
_MOST_ROUNDS, _MOST_NAMES = 12, 5
# The output of a session that ended badly is looked for this often, and for this share of the time that it ran.
_LOOKS, _LOOK_SHARE = 3, 0.1


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
    """Return the launch in this folder, ready to continue: failed sessions have their next round.

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


def _was_accepted(one: _Round) -> bool:
    """Return True if Kaggle accepted the round's kernel. Asks Kaggle if the response was lost."""
    if one.version or one.outcome == FAILED:
        return bool(one.version)
    return one.tried and api._look_repeatedly(lambda: kernel_push._find_push(one.ref, one.push_token, {})) is not None


def _schedule_retries(launch: _Launch) -> None:
    """Add a new round for each part whose session failed. It resumes from the kept output, or starts again."""
    for number, part in enumerate(launch.rounds):
        if part and part[-1].outcome == FAILED:
            kept = f"resuming with its finished folds ({part[-1].came or 'its folds'})"
            log_info(f"{part[-1].ref} failed before: {kept if part[-1].kept else 'pushing it again'}")
            part.append(_plan_retry(launch, number))
    launch.save()


def _plan_retry(launch: _Launch, number: int) -> _Round:
    """Return the next round of a part. It has a new slug unless the last session failed without output."""
    part = launch.rounds[number]
    one = _Round(push_token=new_push_token(launch.plan.name), ref="")
    last = part[-1] if part else None
    if last is None or last.kept or last.outcome != FAILED:
        one.ref = f"{launch.user}/{launch.plan.slug(number, len(part))}"
    elif last.empty:
        _rename_round(launch, number, one)
    else:
        one.ref = last.ref
    return one


def _rename_round(launch: _Launch, number: int, one: _Round) -> None:
    """Give the round an unused slug. A refused first push can leave an empty kernel under its slug."""
    slug = launch.plan.slug(number, max(0, len(launch.rounds[number]) - 1))
    one.ref = f"{launch.user}/{kernel_push._fresh_slug(slug, one.push_token)}"


def _train_parts(queue: _Queue) -> None:
    """Push the training kernels, two at a time, until every part is complete and pulled.

    Raises:
        KaggleError: a session failed, or the week's hours are used up. The other sessions are pulled first.
    """
    failed: dict[tuple[str, int], KaggleError] = {}
    shown, reader = "", _ProgressReader()

    def left() -> list[tuple[_Launch, int]]:
        parts = [(launch, part) for launch in queue.launches for part in range(len(launch.rounds))]
        return [
            (launch, part)
            for launch, part in parts
            if (launch.plan.name, part) not in failed and not launch.complete(part)
            if not (queue.used_up and launch.needs_push(part))
        ]

    with StatusLine() as waiting:
        while left():
            for launch, part in left():
                error = _step_part_with_retries(launch, part)
                if error is not None:
                    failed[launch.plan.name, part] = error
            table = "\n".join(map(_format_status, queue.launches))
            if table != shown:
                log_info(table)
                shown = table
            if left():
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
        one = launch.rounds[part][-1]
        if one.version and one.outcome == FAILED:
            return error
        if len(launch.queue.launches) > 1 and kernel_push._is_quota_used(error):
            launch.queue.used_up = error
            return None
        if not error.passing or time.time() - one.began > _PATIENCE:
            raise
        log_info(f"{one.ref}: {error.found}; checking again later")
    return None


def _describe_wait(queue: _Queue, reader: _ProgressReader) -> str:
    """Return the progress of the running sessions from their logs, and the estimated time left for the plan."""
    now, parts = time.time(), [rounds for launch in queue.launches for rounds in launch.rounds]
    running = [rounds[-1] for rounds in parts if rounds and rounds[-1].running and rounds[-1].version]
    times = ", ".join(reader.describe(one.kernel(), one.status or "PUSHED", now - one.began) for one in running)
    spent = sum((one.ended or now) - one.began for rounds in parts for one in rounds if one.version)
    hours = queue.total_hours()
    left = (3600 * (hours or 0.0) - spent) / max(len(running), 1)
    guess = f"about {format_duration(left)} left" if left > 0 else "longer than estimated"
    guess = "time left unknown" if hours is None else guess
    return f"{queue.name}: {times or 'waiting for a free session'}; {guess}"


def _format_aucs(folder: Path) -> str:
    """Return the validation AUC of each pulled fold in the folder, as text."""
    manifests = sorted((folder / "run").glob("fold[0-9]*/model.json"))
    return ", ".join(f"{manifest.parent.name} AUC {read_json(manifest)['auc']:.4f}" for manifest in manifests)


def _step_part(launch: _Launch, part: int) -> None:
    """Do the next step of a part: start a round, push it, poll it or pull it.

    Raises:
        KaggleError: its session failed, was cancelled or never ends.
    """
    rounds = launch.rounds[part]
    if launch.complete(part):
        return
    if not rounds or not rounds[-1].running:
        if launch.queue.active() >= _MOST_SESSIONS or launch.queue.used_up:
            return
        if len(rounds) >= _MOST_ROUNDS:
            raise KaggleError(f"{rounds[-1].ref}: not finished after {len(rounds)} sessions", "", "See its log")
        rounds.append(_plan_retry(launch, part))
        launch.save()
    if not rounds[-1].version:
        _push_part(launch, part)
    else:
        _poll_session(launch, part)


def _push_part(launch: _Launch, part: int) -> None:
    """Push the part's newest round, unless it was pushed already. Does nothing while pushes are on hold.

    Raises:
        KaggleError: refused, or accepted without one of its inputs. The round has then failed.
    """
    one, plan = launch.rounds[part][-1], launch.plan
    if time.time() < launch.queue.hold or launch.queue.used_up:
        return
    slug = one.ref.split("/")[1]
    folder = launch.root / "kernels" / slug
    inputs = tuple(earlier.output for earlier in launch.rounds[part][:-1] if earlier.kept)[-1:]
    settings = KernelSettings(
        folds=plan.parts[part],
        flags=plan.flags,
        time_limit=plan.time_limit,
        inputs=inputs,
        datasets=plan.datasets,
        models=plan.models,
        **plan.named_files,
    )
    compose_kernel("train", folder, settings, user=launch.user, slug=slug, push_token=one.push_token)
    again, one.tried = one.tried, True
    launch.save()
    try:
        kernel = kernel_push._push_kernel(folder, one.push_token, again=again, optional=inputs)
    except KaggleError as error:
        if error.busy or error.refused:
            _record_refusal(launch, part, error)
        if (error.busy or error.refused) and one.running:
            return  # to be pushed again
        raise
    kernel_push.record_push(launch.queue.records / kernel_push._PUSH_RECORD, kernel, job="train")
    one.version, one.began, one.limit = kernel.version, time.time(), kernel.limit
    launch.queue.busy, launch.queue.hold = 0, 0.0
    launch.save()


def _record_refusal(launch: _Launch, part: int, error: KaggleError) -> None:
    """Record that the round's push was refused. A temporary refusal is retried later, any other ends the round."""
    one, queue = launch.rounds[part][-1], launch.queue
    known = any(other.version for other in launch.rounds[part] if other.ref == one.ref)
    one.empty = error.no_version and not known
    if kernel_push._is_name_trouble(error) and queue.renamed < _MOST_NAMES:
        queue.renamed += 1
        one.push_token, one.tried = new_push_token(launch.plan.name), False
        _rename_round(launch, part, one)
        log_info(f"{error.found}; using the name {one.ref}")
    elif error.busy and time.time() - one.began <= _PATIENCE:
        pause = min(queue.poll * 2**queue.busy, _LONGEST_HOLD)
        queue.busy, queue.hold = queue.busy + 1, time.time() + pause
        log_info(f"{one.ref}: {error.found}; pushing again in {format_duration(pause)}")
        # A version that was saved all the same never runs: it must not be found by its push token.
        one.push_token, one.tried = new_push_token(launch.plan.name), False
        if one.empty:
            _rename_round(launch, part, one)
    else:
        one.outcome, one.ended = FAILED, time.time()
    launch.save()


def _poll_session(launch: _Launch, part: int) -> None:
    """Request the state of the part's newest round, and pull its output when it has ended.

    Raises:
        KaggleError: it failed, was cancelled or never ends; or its output is not listed yet, which is temporary.
    """
    one = launch.rounds[part][-1]
    one.status, message = kernel_status(one.kernel())
    if one.status in kernel_output.ENDED:
        one.ended, one.looks = one.ended or time.time(), one.looks + 1
        launch.queue.hold = 0.0  # a session is free
        launch.save()
        if one.status == "COMPLETE":
            _pull_complete(launch, part)
        else:
            _pull_failed(launch, part, message)
    elif time.time() - one.began > _PATIENCE:
        found = f"{one.ref} version {one.version} is {one.status.lower()} for {_PATIENCE / 3600:.0f} hours"
        raise KaggleError(found, "", "Cancel it on the web page, then run the same command again")


def _pull_complete(launch: _Launch, part: int) -> None:
    """Pull the output of a session that Kaggle reports as complete.

    Raises:
        _NotListedError: its output is not listed yet; try again.
        KaggleError: its manifest says that it failed, or its output is not available.
    """
    one, folder = launch.rounds[part][-1], launch.folder(part)
    try:
        output = kernel_output._fetch_output(one.kernel(), folder)
    except _NotListedError as error:
        if time.time() - one.ended > kernel_output._LISTING_LAG:
            hint = f"See {api._CODE_PAGE}/{one.ref}, and run the same command again"
            raise KaggleError(error.found, error.expected, hint) from error
        raise
    one.outcome, one.ended = output.status, time.time()
    one.came = output.folds() if output.status == FAILED else ""
    launch.save()
    if one.outcome == FAILED:
        raise explain_failed_session(one.kernel(), output, folder)


def _pull_failed(launch: _Launch, part: int, message: str) -> None:
    """Pull the finished work of a session that failed, was cancelled or timed out. A timed-out session is resumed.

    Raises:
        _NotListedError: nothing is listed yet; try again.
        KaggleError: it failed or was cancelled, or none of its output is usable.
    """
    one, folder = launch.rounds[part][-1], launch.folder(part)
    kernel = one.kernel()
    try:
        output = kernel_output._fetch_output(kernel, folder, whole=False)
        one.came = output.folds() if output.files else ""
    except _NotListedError:
        waited, ran = time.time() - one.ended, one.ended - one.began
        if one.looks < _LOOKS or waited < min(kernel_output._LISTING_LAG, _LOOK_SHARE * ran):
            raise
    log = kernel_output.session_log(kernel)
    error = explain_session_end(kernel, one.status, message, log, out=folder, came=one.came)
    timed_out = kernel_output._is_timed_out(kernel, one.status, kernel_output._session_seconds(kernel, log))
    one.outcome = _STOPPED if timed_out and one.came else FAILED
    launch.save()
    if one.outcome == FAILED:
        raise error
    log_info(f"{error.found}; resuming with its finished folds ({one.came})")


def _format_status(launch: _Launch) -> str:
    """Return the state of all parts, one line each."""
    lines = []
    for part, rounds in enumerate(launch.rounds):
        state = "waiting" if not rounds else rounds[-1].outcome or rounds[-1].status.lower() or "pushed"
        name = rounds[-1].ref if rounds else launch.plan.slug(part, 0)
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

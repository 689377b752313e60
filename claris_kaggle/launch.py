"""The whole entry on Kaggle: push, wait, pull, go on where a time limit stopped, ensemble, submit, record.

All that was done is put down before and after every act that the world can see. Stopped anywhere,
the same call goes on: an act whose answer got lost is looked for by its mark before it is done again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from claris_kaggle import kaggle_api, kernels, tables
from claris_kaggle.bundle import compose_kernel
from claris_kaggle.console import Waiting, duration, say
from claris_kaggle.errors import KaggleError
from claris_kaggle.fetch import fetch_file
from claris_kaggle.files import hold_lock, read_json
from claris_kaggle.folds import read_folds
from claris_kaggle.inputs import merge_runs
from claris_kaggle.kernels import explain_end, kernel_status, new_mark, pull_kernel
from claris_kaggle.paths import DataDir, RunDir
from claris_kaggle.plan import FAILED, MOST_SESSIONS, Launch, Plan, Round
from claris_kaggle.predictions import gather_run
from claris_kaggle.session import STOPPED
from claris_kaggle.submission import ensemble_runs
from claris_kaggle.submit import submit_file

LONGEST_SESSION = 24 * 3600.0
MOST_ROUNDS = 12


def run_launch(plan: Plan, root: Path, ledger: Path, *, poll: float = 60.0) -> dict[str, Any]:
    """Carry the plan out, or go on with it, to the line of the ledger.

    Raises:
        ClarisError: a session failed, Kaggle refused, or another plan was begun under this name.
    """
    with hold_lock(root / ".lock"):
        launch = Launch(root, plan)
        if not launch.user:
            launch.user = kaggle_api.whoami()
            launch.save()
        retire_failed(launch)
        train_parts(launch, poll)
        submission, sample_ids = put_together(launch)
        return submit_file(submission, sample_ids, ledger, poll=min(poll, 30.0))


def retire_failed(launch: Launch) -> None:
    """Let sessions that failed be begun anew: typing the same command again asks for that."""
    for part in launch.rounds:
        if part and part[-1].outcome == FAILED:
            say(f"{part[-1].ref} failed before: pushing it again")
            part.append(Round(mark=new_mark(launch.plan.name), ref=part[-1].ref))
    launch.save()


def train_parts(launch: Launch, poll: float) -> None:
    """Push the training kernels, two at a time, until every part is complete and pulled."""
    parts = range(len(launch.plan.parts))
    shown = ""
    with Waiting() as waiting:
        while not all(launch.complete(part) for part in parts):
            for part in parts:
                advance(launch, part)
            table = show(launch)
            if table != shown:
                say(table)
                shown = table
            if not all(launch.complete(part) for part in parts):
                waiting.show(describe_wait(launch))
                time.sleep(poll)


def describe_wait(launch: Launch) -> str:
    """How long the sessions of now have been running, and how long all may still take, by the plan's estimate."""
    now = time.time()
    running = [rounds[-1] for rounds in launch.rounds if rounds and rounds[-1].running and rounds[-1].version]
    times = ", ".join(f"{one.ref} {one.status.lower() or 'pushed'} for {duration(now - one.began)}" for one in running)
    spent = sum((one.ended or now) - one.began for rounds in launch.rounds for one in rounds if one.version)
    left = (3600 * launch.plan.hours() - spent) / max(len(running), 1)
    guess = f"about {duration(left)} to go" if left > 0 else "longer than estimated"
    return f"{launch.plan.name}: {times or 'waiting for a free session'}; {guess}"


def aucs(folder: Path) -> str:
    """The validation AUC of each fold that was pulled into the folder."""
    seals = sorted((folder / "run").glob("fold[0-9]*/model.json"))
    return ", ".join(f"{seal.parent.name} AUC {read_json(seal)['auc']:.4f}" for seal in seals)


def advance(launch: Launch, part: int) -> None:
    """Do the next thing for a part: begin a round, push it, look at it, or pull it.

    Raises:
        KaggleError: its session failed, was cancelled or never ends.
    """
    rounds = launch.rounds[part]
    if launch.complete(part):
        return
    if not rounds or not rounds[-1].running:
        if launch.active() >= MOST_SESSIONS:
            return
        if len(rounds) >= MOST_ROUNDS:
            raise KaggleError(f"{rounds[-1].ref}: not finished after {len(rounds)} sessions", "", "Look at its log")
        ref = f"{launch.user}/{launch.plan.slug(part, len(rounds))}"
        rounds.append(Round(mark=new_mark(launch.plan.name), ref=ref))
        launch.save()
    if not rounds[-1].version:
        push(launch, part)
    else:
        look(launch, part)


def push(launch: Launch, part: int) -> None:
    """Push the part's newest round, unless that has happened already."""
    one, plan = launch.rounds[part][-1], launch.plan
    stopped = [earlier.ref for earlier in launch.rounds[part][:-1] if earlier.outcome == STOPPED]
    version = kaggle_api.find_push(one.ref, one.mark)
    if version is None:
        folder = launch.root / "kernels" / one.ref.split("/")[1]
        compose_kernel(
            "train",
            folder,
            user=launch.user,
            slug=one.ref.split("/")[1],
            mark=one.mark,
            folds=plan.parts[part],
            flags=plan.flags,
            time_limit=plan.time_limit,
            inputs=stopped[-1:],
            datasets=plan.datasets,
            models=plan.models,
        )
        try:
            version = kernels.push_kernel(folder, one.mark).version
        except KaggleError as error:
            if error.busy:
                say(f"{one.ref}: {error.found}; waiting")
                return
            raise
    one.version, one.began = version, time.time()
    launch.save()


def look(launch: Launch, part: int) -> None:
    """Ask for the state of the part's newest round, and pull it when it has ended well."""
    one = launch.rounds[part][-1]
    one.status, message = kernel_status(one.kernel())
    if one.status == "COMPLETE":
        manifest = pull_kernel(one.kernel(), launch.folder(part))
        one.outcome, one.ended = str(manifest["status"]), time.time()
        launch.save()
    elif one.status in kernels.ENDED:
        one.outcome, one.ended = FAILED, time.time()
        launch.save()
        raise explain_end(one.kernel(), one.status, message)
    elif time.time() - one.began > LONGEST_SESSION:
        found = f"{one.ref} version {one.version} is {one.status.lower()} for {LONGEST_SESSION / 3600:.0f} hours"
        raise KaggleError(found, "", "Cancel it on the web page, and run the same command again")


def show(launch: Launch) -> str:
    """The state of all parts, a line each."""
    lines = []
    for part, rounds in enumerate(launch.rounds):
        state = "waiting" if not rounds else rounds[-1].outcome or rounds[-1].status.lower() or "pushed"
        name = rounds[-1].ref if rounds else launch.plan.slug(part, 0)
        found = aucs(launch.folder(part)) if launch.complete(part) else ""
        lines.append(f"  {name:<44} {state}" + (f" ({found})" if found else ""))
    return "\n".join(lines)


def count_views(run_dir: RunDir) -> Any:
    """How many views the first fold was predicted with; None where that is not known."""
    receipt = run_dir.fold(0).receipt
    return read_json(receipt).get("views") if receipt.exists() else None


def put_together(launch: Launch) -> tuple[Path, Sequence[str]]:
    """Merge the parts into one run, and write its checked submission; returns its path and the sample's ids.

    Raises:
        ClarisError: parts do not fit together, or the predictions do not make a submission.
    """
    run_dir, data = RunDir(launch.root / "run"), DataDir(launch.root / "sample")
    merge_runs([RunDir(launch.folder(part) / "run") for part in range(len(launch.plan.parts))], run_dir)
    if not data.sample.exists():
        fetch_file(data.sample.name, data.root)
    sample_ids = tables.read_sample(data.sample)
    gather_run(run_dir, read_folds(run_dir.folds), sample_ids, {"views": count_views(run_dir)})
    submission = launch.root / "submission.csv"
    result = ensemble_runs([run_dir], data, submission)
    say(f"{submission}: OOF AUC {result['oof']['auc']:.4f}")
    return submission, sample_ids

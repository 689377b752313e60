"""The whole entry on Kaggle: push, wait, pull, go on where a time limit stopped, ensemble, submit, record.

All that was done stands in `launch.json`, which is written before and after every act that the
world can see. Stopped anywhere, the same call goes on: an act whose answer got lost is looked for
by its mark before it is done again.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from claris_kaggle import kaggle_api, kernels, tables
from claris_kaggle.bundle import build_bundle, commit_name, compose_kernel
from claris_kaggle.console import say
from claris_kaggle.errors import KaggleError, RunError, UsageError
from claris_kaggle.files import hold_lock, read_json, write_json
from claris_kaggle.folds import read_folds
from claris_kaggle.kernels import Kernel, explain_end, kernel_status, new_mark, pull_kernel
from claris_kaggle.paths import DataDir, RunDir
from claris_kaggle.predictions import gather_run, read_test
from claris_kaggle.session import COMPLETE, merge_runs
from claris_kaggle.submission import submit_runs
from claris_kaggle.submit import submit_file

MOST_SESSIONS = 2
LONGEST_SESSION = 24 * 3600.0
MOST_ROUNDS = 12
# Measured by nobody yet on Kaggle: an epoch of 176,020 patches at the middle of the 1,450 to 2,900
# images/s expected of two T4s, plus OOF and test with eight views at 4,600 to 9,200.
EPOCH_HOURS, PREDICT_HOURS, PACK_HOURS, WEEKLY_HOURS = 0.025, 0.04, 0.15, 30.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be launched; fixed when it begins.

    Attributes:
        name: of the run, which is part of the kernels' names.
        parts: the folds that each training kernel trains; an empty tuple is all of them.
        flags: for `claris train`.
        time_limit: of each session.
        datasets, models: inputs of the training kernels besides the competition.
    """

    name: str
    parts: tuple[tuple[int, ...], ...] = ((),)
    flags: tuple[str, ...] = ()
    time_limit: str = "11h20m"
    datasets: tuple[str, ...] = ()
    models: tuple[str, ...] = ()

    def part_name(self, number: int) -> str:
        """The name of a part, as in its kernel's slug."""
        folds = self.parts[number]
        return "all" if not folds else "fold" + "-".join(map(str, folds))

    def slug(self, number: int, round_number: int) -> str:
        """The kernel's slug: every round has its own, so that one can be the next one's input."""
        again = f"-r{round_number + 1}" if round_number else ""
        return f"claris-{self.name}-{self.part_name(number)}{again}"


@dataclass
class Round:
    """One session of a part: its mark is put down before it is pushed, the rest when it is known."""

    mark: str
    ref: str
    version: int = 0
    status: str = ""
    outcome: str = ""
    began: float = field(default_factory=time.time)

    @property
    def running(self) -> bool:
        """Whether Kaggle may still be working on it."""
        return not self.outcome

    def kernel(self) -> Kernel:
        """The version that was pushed."""
        return Kernel(ref=self.ref, version=self.version, mark=self.mark)


class Launch:
    """The state of a launch, on disk after every change."""

    def __init__(self, root: Path, plan: Plan) -> None:
        self.root, self.plan, self.path = root, plan, root / "launch.json"
        self.user, self.rounds = "", [[] for _ in plan.parts]  # type: tuple[str, list[list[Round]]]
        if self.path.exists():
            stored = read_json(self.path)
            asked = as_json(plan)
            if stored["plan"] != asked:
                changed = [name for name in asked if stored["plan"].get(name) != asked[name]]
                found = f"{self.path}: begun with another plan ({', '.join(changed)})"
                raise RunError(found, "", "Give the same flags, or another NAME")
            self.user = stored["user"]
            self.rounds = [[Round(**one) for one in part] for part in stored["rounds"]]

    def save(self) -> None:
        """Put the state in place."""
        rounds = [[dataclasses.asdict(one) for one in part] for part in self.rounds]
        write_json(self.path, {"plan": as_json(self.plan), "user": self.user, "rounds": rounds})

    def folder(self, part: int) -> Path:
        """Where a part's output is pulled to."""
        return self.root / "parts" / self.plan.part_name(part)

    def complete(self, part: int) -> bool:
        """Whether the part is trained, predicted and pulled."""
        return bool(self.rounds[part]) and self.rounds[part][-1].outcome == COMPLETE

    def active(self) -> int:
        """How many sessions may be running."""
        return sum(one.running for part in self.rounds for one in part[-1:])


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON gives it back."""
    values = dataclasses.asdict(plan)
    return {name: listed(value) for name, value in values.items()}


def listed(value: Any) -> Any:
    """Tuples as lists, at any depth."""
    return [listed(one) for one in value] if isinstance(value, tuple | list) else value


def describe_plan(plan: Plan, epochs: int, folds: int = 5) -> dict[str, Any]:
    """What a launch would do, without asking anybody: kernels, order, hours of two T4s, size of the upload."""
    trained = sum(len(part) or folds for part in plan.parts)
    hours = trained * (epochs * EPOCH_HOURS + PREDICT_HOURS) + len(plan.parts) * PACK_HOURS
    return {
        "kernels": [
            {"slug": plan.slug(number, 0), "folds": list(part) or list(range(folds)), "machine": "GPU T4 x2"}
            for number, part in enumerate(plan.parts)
        ],
        "at_a_time": min(MOST_SESSIONS, len(plan.parts)),
        "then": ["pull", "ensemble here", "submit", "wait for the score", "ledger"],
        "estimated_hours": round(hours, 1),
        "weekly_hours": WEEKLY_HOURS,
        "upload_bytes": len(plan.parts) * (4 * -(-len(build_bundle()) // 3) + 1000),
        "commit": commit_name(),
    }


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
        if part and part[-1].outcome == "failed":
            say(f"{part[-1].ref} failed before: pushing it again")
            part.append(Round(mark=new_mark(launch.plan.name), ref=part[-1].ref))
    launch.save()


def train_parts(launch: Launch, poll: float) -> None:
    """Push the training kernels, two at a time, until every part is complete and pulled."""
    parts = range(len(launch.plan.parts))
    shown = ""
    while not all(launch.complete(part) for part in parts):
        for part in parts:
            advance(launch, part)
        table = show(launch)
        if table != shown:
            say(table)
            shown = table
        if not all(launch.complete(part) for part in parts):
            time.sleep(poll)


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
    earlier = [ref for ref in reversed([old.ref for old in launch.rounds[part][:-1] if old.outcome == "stopped"])]
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
            inputs=earlier[:1],
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
        one.outcome = str(manifest["status"])
        launch.save()
    elif one.status in kernels.ENDED:
        one.outcome = "failed"
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
        lines.append(f"  {name:<44} {state}")
    return "\n".join(lines)


def put_together(launch: Launch) -> tuple[Path, Sequence[str]]:
    """Merge the parts into one run, and write its checked submission; returns its path and the sample's ids.

    Raises:
        ClarisError: parts do not fit together, or the predictions do not make a submission.
    """
    run_dir, data = RunDir(launch.root / "run"), DataDir(launch.root / "sample")
    merge_runs([RunDir(launch.folder(part) / "run") for part in range(len(launch.plan.parts))], run_dir)
    if not data.sample.exists():
        kaggle_api.fetch_competition_file(data.sample.name, data.root)
    sample_ids = tables.read_sample(data.sample)
    folds = read_folds(run_dir.folds)
    views = {"test_patches": len(read_test(run_dir.fold(0).test).ids)}
    gather_run(run_dir, folds, sample_ids, views)
    submission = launch.root / "submission.csv"
    result = submit_runs([run_dir], data, submission)
    say(f"{submission}: OOF AUC {result['oof']['auc']:.4f}")
    return submission, sample_ids


def require_name(name: str) -> str:
    """The run's name itself, which is part of kernels' names.

    Raises:
        UsageError: it cannot be.
    """
    if not name or len(name) > 24 or not name.replace("-", "").isalnum() or name != name.lower() or not name.isascii():
        raise UsageError(f"a name {name!r}", "up to 24 small letters and digits, joined by -, are needed")
    return name

"""Define the plan of a launch, its estimated GPU hours, and its state, which is saved after every change."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from claris_kaggle.core.config import TrainConfig, apply_preset, parse_config_flags
from claris_kaggle.core.errors import ClarisError, KaggleError, RunError, UsageError
from claris_kaggle.core.files import read_json, write_json
from claris_kaggle.kaggle.kernel_output import Kernel
from claris_kaggle.kaggle.kernel_source import _build_bundle, commit_name
from claris_kaggle.kaggle.session import _COMPLETE, _STOPPED, FAILED
from claris_kaggle.kaggle.session_inputs import _FileSettings

if TYPE_CHECKING:
    from claris_kaggle.models.cost import NetworkCost

_MAX_PARALLEL_SESSIONS = 2
_STATE_FILE, _PLAN_FILE = "launch.json", "plan.json"
_DEFAULT_FOLDS = 5
# Numbers of patches, and of views in a session's predictions, for the estimate of hours in `models.cost`.
_TRAIN_PATCHES, _TEST_PATCHES, _SESSION_VIEWS = 220_025, 57_458, 8
# Hours to start a session and pack the patches, an estimate; and Kaggle's GPU hours a week.
_PACK_HOURS, _WEEKLY_HOURS = 0.15, 30.0


@dataclass(frozen=True, kw_only=True)
class Plan(_FileSettings):
    """The plan of a launch. It cannot change after the launch has started.

    Attributes:
        name: name of the run, which is part of the kernels' names.
        parts: folds of each training kernel; an empty tuple means all folds.
        flags: flags for `claris train`.
        time_limit: of each session, such as 11h20m.
        datasets, models: inputs of the training kernels besides the competition.
        weights_from, slides_from, folds_from, extra_from: input files, as owner/dataset/file; see `compose_kernel`.
    """

    name: str
    parts: tuple[tuple[int, ...], ...] = ((),)
    flags: tuple[str, ...] = ()
    time_limit: str = "11h20m"
    datasets: tuple[str, ...] = ()
    models: tuple[str, ...] = ()

    def part_name(self, number: int) -> str:
        """Return the name of a part, as used in its kernel's slug."""
        folds = self.parts[number]
        return "all" if not folds else "fold" + "-".join(map(str, folds))

    def hours(self) -> float | None:
        """Return the estimated hours of all kernels on two T4 GPUs, or None if they are not known here."""
        return _sum_hours([self.part_hours(number) for number in range(len(self.parts))])

    def part_hours(self, number: int) -> float | None:
        """Return the estimated hours of the kernel of a part on two T4 GPUs, or None if they are not known here."""
        config, cost = self.config(), self.cost()
        if cost is None:
            return None
        return _PACK_HOURS + cost.hours(
            train_patches=_TRAIN_PATCHES,
            epochs=config.epochs,
            folds=len(self.parts[number]) or _DEFAULT_FOLDS,
            views=_SESSION_VIEWS,
            predict_patches=_TEST_PATCHES,
            all_folds=_DEFAULT_FOLDS,
        )

    def cost(self) -> NetworkCost | None:
        """Return the cost of the network, or None if this machine does not know the network, or has no torch or timm.

        Imports torch, so it is called only where hours are needed.
        """
        config = self.config()
        try:
            from claris_kaggle.models.cost import run_cost

            return run_cost(config, config.precision)
        except (ClarisError, ImportError):
            return None

    def config(self) -> TrainConfig:
        """Return the config of the sessions. A network with a fixed input size gets that size, if it is known here.

        Imports torch, as `cost` does.
        """
        return _session_config(self.flags, self.weights_from)

    def inputs(self) -> list[str]:
        """Return all inputs besides the competition."""
        return [*self.datasets, *self.models, *filter(None, self.named_files.values())]

    def slug(self, number: int, session_number: int) -> str:
        """Return the kernel's slug. Every session has its own slug: its output can be the next session's input."""
        suffix = f"-r{session_number + 1}" if session_number else ""
        return f"claris-{self.name}-{self.part_name(number)}{suffix}"


@functools.cache
def _session_config(flags: tuple[str, ...], weights: str) -> TrainConfig:
    """Return the config of a session; arguments as in `parse_config_flags`."""
    given = parse_config_flags(flags, weights)
    try:
        from claris_kaggle.training.setup import new_config

        return new_config(given)
    except (ClarisError, ImportError):
        return apply_preset(given)


# Keys of a session in a launch.json of an earlier version, with the fields of today.
_FORMER_KEYS = {
    "mark": "push_token",
    "tried": "push_attempted",
    "began": "started",
    "looks": "fetch_attempts",
    "came": "pulled_output",
    "empty": "left_empty_kernel",
}


@dataclass
class _PartSession:
    """One session of a part. Its push token is saved before the push, the other fields when they are known.

    Attributes:
        push_attempted: a push may have been sent.
        limit: seconds after which Kaggle stops the session.
        started: time of planning, then time of the push; seconds since the epoch.
        ended: time at which its end was first seen; seconds since the epoch.
        fetch_attempts: number of attempts to fetch its output since its end.
        pulled_output: description of the pulled output of a session that failed, was cancelled or timed out.
        left_empty_kernel: the push was refused, and may have left an empty kernel under its slug.
    """

    push_token: str
    ref: str
    version: int = 0
    status: str = ""
    outcome: str = ""
    started: float = field(default_factory=lambda: time.time())
    ended: float = 0.0
    push_attempted: bool = False
    limit: float = 0.0
    fetch_attempts: int = 0
    pulled_output: str = ""
    left_empty_kernel: bool = False

    @property
    def running(self) -> bool:
        """Return True if Kaggle may still be running the session."""
        return not self.outcome

    @property
    def resumable(self) -> bool:
        """Return True if its output can be resumed: the session stopped at its time limit, or failed with output."""
        return self.outcome in (_STOPPED, FAILED) and (self.status == "COMPLETE" or bool(self.pulled_output))

    @property
    def output(self) -> str:
        """Return its output as a kernel input. Kaggle requires the version of a session that did not complete."""
        return self.ref if self.status == "COMPLETE" else f"{self.ref}/{self.version}"

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Return a stored session. Without `push_attempted`, as in older files, a push may have been sent."""
        fields = {_FORMER_KEYS.get(key, key): value for key, value in stored.items()}
        return cls(**{"push_attempted": True, **fields})

    def to_json(self) -> dict[str, object]:
        """Return plain values by the keys of launch.json."""
        return dataclasses.asdict(self)

    def kernel(self) -> Kernel:
        """Return the pushed version."""
        return Kernel(
            ref=self.ref, version=self.version, push_token=self.push_token, pushed=self.started, limit=self.limit
        )


@dataclass
class _Queue:
    """The launches that share Kaggle's limit of sessions, and the state of their pushes.

    Attributes:
        name: name of the whole launch.
        launches: in the order in which they start.
        records: folder of the record of pushes.
        poll: seconds between two polls.
        limit_refusals: consecutive refusals because other sessions are running.
        next_push: no push before this time, in seconds since the epoch.
        renamed: number of pushes whose slug was not available.
        used_up: the refusal because the week's hours are used up. Nothing is pushed after it.
    """

    name: str
    launches: list[_Launch]
    records: Path
    poll: float = 60.0
    limit_refusals: int = 0
    next_push: float = 0.0
    renamed: int = 0
    used_up: KaggleError | None = None

    def active(self) -> int:
        """Return the number of sessions that may be running."""
        return sum(one.active() for one in self.launches)

    def total_hours(self) -> float | None:
        """Return the estimated GPU hours of all launches, or None if those of one are not known."""
        return _sum_hours([one.plan.hours() for one in self.launches])


class _Launch:
    """The state of a launch, saved to disk after every change.

    Args:
        root: folder of the launch.
        plan: what to launch.
        was_accepted: returns True if Kaggle accepted the kernel of a session. The plan may change until then.
    Raises:
        RunError: the launch was started with another plan.
    """

    def __init__(
        self, root: Path, plan: Plan, was_accepted: Callable[[_PartSession], bool] = lambda session: True
    ) -> None:
        self.root, self.plan, self.path = root, plan, root / _STATE_FILE
        self.queue = _Queue(plan.name, [self], root.parent)
        self.user = ""
        self.sessions: list[list[_PartSession]] = [[] for _ in plan.parts]
        if self.path.exists():
            stored = read_json(self.path)
            requested = _plan_to_json(plan)
            key = "sessions" if "sessions" in stored else "rounds"  # the key of earlier versions
            sessions = [[_PartSession.from_json(session) for session in part] for part in stored[key]]
            self.user = stored["user"]
            # Newer fields of the plan are missing in files of older versions.
            stored["plan"] = _plan_to_json(Plan(name="")) | stored["plan"]
            if stored["plan"] == requested:
                self.sessions = sessions
            elif any(was_accepted(session) for part in sessions for session in part):
                changed = [name for name in requested if stored["plan"].get(name) != requested[name]]
                found = f"{self.path}: started with another plan ({', '.join(changed)})"
                raise RunError(found, "", "Use the same flags, or another NAME")

    def save(self) -> None:
        """Write the state to disk."""
        sessions = [[session.to_json() for session in part] for part in self.sessions]
        write_json(self.path, {"plan": _plan_to_json(self.plan), "user": self.user, "sessions": sessions})

    def folder(self, part: int) -> Path:
        """Return the folder that a part's output is pulled to."""
        return self.root / "parts" / self.plan.part_name(part)

    def complete(self, part: int) -> bool:
        """Return True if the part is trained, predicted and pulled."""
        return bool(self.sessions[part]) and self.sessions[part][-1].outcome == _COMPLETE

    def needs_push(self, part: int) -> bool:
        """Return True if the part is not complete and no session of it may still be running on Kaggle."""
        sessions = self.sessions[part]
        return not self.complete(part) and not (sessions and sessions[-1].running and sessions[-1].version)

    def hours_to_push(self) -> float | None:
        """Return the estimated GPU hours of the parts that are not pushed yet: 0 without any, None if unknown."""
        parts = [part for part in range(len(self.sessions)) if self.needs_push(part)]
        return _sum_hours([self.plan.part_hours(part) for part in parts])

    def active(self) -> int:
        """Return the number of sessions that may be running."""
        return sum(session.running for part in self.sessions for session in part[-1:])


def _plan_to_json(plan: Plan) -> dict[str, object]:
    """Return the plan as it reads back from JSON."""
    return dict(json.loads(json.dumps(dataclasses.asdict(plan))))


@dataclass(frozen=True, kw_only=True)
class _PlannedKernel:
    """A training kernel of a plan. `hours` is an estimate, None if unknown; its sessions resume one another."""

    slug: str
    folds: Sequence[int]
    machine: str = "GPU T4 x2"
    hours: float | None = None


@dataclass(frozen=True, kw_only=True)
class PlanSummary:
    """A summary of a plan. The fields have the order of the output of `claris launch --dry-run --json`.

    Attributes:
        kernels: the training kernels.
        flags, time_limit: of the plan.
        inputs: all inputs besides the competition.
        parallel_sessions: number of sessions that run at the same time.
        next_steps: the steps after training.
        network: name and input size of the network.
        gflop: of a forward pass for one image; None if unknown.
        estimated_hours: hours on two T4 GPUs; None if unknown.
        weekly_hours: GPU hours that Kaggle gives in a week.
        upload_bytes: size of all scripts.
        commit: of the library.
    """

    kernels: Sequence[_PlannedKernel]
    flags: Sequence[str]
    time_limit: str
    inputs: Sequence[str]
    parallel_sessions: int
    next_steps: Sequence[str] = ("pull", "ensemble here", "submit", "wait for the score", "ledger")
    network: str
    gflop: float | None
    estimated_hours: float | None
    weekly_hours: float = _WEEKLY_HOURS
    upload_bytes: int
    commit: str


def describe_plan(plan: Plan) -> PlanSummary:
    """Return a summary of the plan, without contacting Kaggle."""
    config, cost = plan.config(), plan.cost()
    return PlanSummary(
        kernels=[
            _PlannedKernel(
                slug=plan.slug(number, 0),
                folds=part or tuple(range(_DEFAULT_FOLDS)),
                hours=_round_hours(plan.part_hours(number)),
            )
            for number, part in enumerate(plan.parts)
        ],
        flags=plan.flags,
        time_limit=plan.time_limit,
        inputs=plan.inputs(),
        parallel_sessions=min(_MAX_PARALLEL_SESSIONS, len(plan.parts)),
        network=f"{config.model} at {config.side} pixels",
        gflop=None if cost is None else cost.gflop,
        estimated_hours=_round_hours(plan.hours()),
        upload_bytes=len(plan.parts) * _script_bytes(),
        commit=commit_name(),
    )


def _sum_hours(hours: Sequence[float | None]) -> float | None:
    """Return the sum, or None if one of the hours is not known."""
    known_hours = [value for value in hours if value is not None]
    return sum(known_hours) if len(known_hours) == len(hours) else None


def _round_hours(hours: float | None) -> float | None:
    """Return hours with one decimal, or None if they are unknown."""
    return None if hours is None else round(hours, 1)


def _script_bytes() -> int:
    """Return the approximate size of a kernel's script: the library in base64, and the rest."""
    return 4 * -(-len(_build_bundle()) // 3) + 1000


def require_name(name: str) -> str:
    """Return the run's name if it can be part of kernel slugs.

    Raises:
        UsageError: it is longer than 24 characters, or has other characters than a-z, 0-9 and single hyphens.
    """
    if len(name) > 24 or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise UsageError(f"invalid name {name!r}", "expected up to 24 lower-case letters, digits and -")
    return name

"""What a launch is to do, about how long it takes, and how far it is: on disk after every change."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from claris_kaggle.core.config import TrainConfig, add_config_flags, apply_preset, read_given_flags
from claris_kaggle.core.errors import RunError, UsageError
from claris_kaggle.core.files import read_json, write_json
from claris_kaggle.kaggle.kernel_output import Kernel
from claris_kaggle.kaggle.kernel_source import _build_bundle, commit_name
from claris_kaggle.kaggle.session import _COMPLETE, _STOPPED, FAILED

_MOST_SESSIONS = 2
_FOLDS = 5
# Measured by nobody yet on Kaggle: an epoch of 176,020 patches at the middle of the 1,450 to 2,900
# images/s expected of two T4s, plus OOF and test with eight views at 4,600 to 9,200.
_EPOCH_HOURS, _PREDICT_HOURS, _PACK_HOURS, _WEEKLY_HOURS = 0.025, 0.04, 0.15, 30.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be launched; fixed when it begins.

    Attributes:
        name: of the run, which is part of the kernels' names.
        parts: the folds that each training kernel trains; an empty tuple is all of them.
        flags: for `claris train`.
        time_limit: of each session.
        datasets, models: inputs of the training kernels besides the competition.
        weights_from, slides_from, folds_from: files that the sessions take, as owner/dataset/file; see `bundle`.
    """

    name: str
    parts: tuple[tuple[int, ...], ...] = ((),)
    flags: tuple[str, ...] = ()
    time_limit: str = "11h20m"
    datasets: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    weights_from: str = ""
    slides_from: str = ""
    folds_from: str = ""

    @property
    def named_files(self) -> dict[str, str]:
        """Return the files that the sessions take, by the names of their settings."""
        return {name: getattr(self, name) for name in ("weights_from", "slides_from", "folds_from")}

    def part_name(self, number: int) -> str:
        """The name of a part, as in its kernel's slug."""
        folds = self.parts[number]
        return "all" if not folds else "fold" + "-".join(map(str, folds))

    def hours(self) -> float:
        """How many hours of two T4s it may take."""
        epochs = self._config().epochs
        trained = sum(len(part) or _FOLDS for part in self.parts)
        return trained * (epochs * _EPOCH_HOURS + _PREDICT_HOURS) + len(self.parts) * _PACK_HOURS

    def _config(self) -> TrainConfig:
        """Return the recipe that the sessions train by."""
        parser = argparse.ArgumentParser(add_help=False)
        add_config_flags(parser)
        given = read_given_flags(parser.parse_known_args(self.flags)[0])
        return apply_preset({**given, "weights": self.weights_from} if self.weights_from else given)

    def slug(self, number: int, round_number: int) -> str:
        """Return the kernel's slug: every round has its own, so that one can be the next one's input."""
        again = f"-r{round_number + 1}" if round_number else ""
        return f"claris-{self.name}-{self.part_name(number)}{again}"


@dataclass
class _Round:
    """One session of a part: its mark is put down before it is pushed, the rest when it is known.

    Attributes:
        tried: a push of it may have been sent.
        limit: seconds after which Kaggle stops the session.
        began: when it was planned, and then, when it was pushed.
        ended: when it was first seen to have ended.
        looks: how often its output was looked for since.
        came: what was pulled of a session that ended badly, in words.
        empty: the push was refused, and may have left an empty kernel of its name.
    """

    push_token: str
    ref: str
    version: int = 0
    status: str = ""
    outcome: str = ""
    began: float = field(default_factory=lambda: time.time())
    ended: float = 0.0
    tried: bool = False
    limit: float = 0.0
    looks: int = 0
    came: str = ""
    empty: bool = False

    @property
    def running(self) -> bool:
        """Whether Kaggle may still be working on it."""
        return not self.outcome

    @property
    def kept(self) -> bool:
        """Whether its output was pulled and is to be gone on with: it stopped, or failed with folds on disk."""
        return self.outcome in (_STOPPED, FAILED) and (self.status == "COMPLETE" or bool(self.came))

    @property
    def output(self) -> str:
        """Return its output as an input of the next session; Kaggle needs the version of one that did not complete."""
        return self.ref if self.status == "COMPLETE" else f"{self.ref}/{self.version}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values, with the push token under the key `push_token`."""
        values = dataclasses.asdict(self)
        return {"mark": values.pop("push_token"), **values}

    def kernel(self) -> Kernel:
        """Return the version that was pushed."""
        return Kernel(
            ref=self.ref, version=self.version, push_token=self.push_token, pushed=self.began, limit=self.limit
        )


class _Launch:
    """The state of a launch, on disk after every change.

    Args:
        taken: whether Kaggle took the kernel of a round; while it took none, the plan may be another.
    Raises:
        RunError: begun with another plan.
    """

    def __init__(self, root: Path, plan: Plan, taken: Callable[[_Round], bool] = lambda one: True) -> None:
        self.root, self.plan, self.path = root, plan, root / "launch.json"
        self.busy = 0  # refusals in a row because of other sessions
        self.hold = 0.0  # no push before this time
        self.renamed = 0  # pushes whose name was not to be had
        self.poll = 60.0  # seconds between two looks
        self.user = ""
        self.rounds: list[list[_Round]] = [[] for _ in plan.parts]
        if self.path.exists():
            stored = read_json(self.path)
            asked, rounds = _plan_to_json(plan), [[_read_round(one) for one in part] for part in stored["rounds"]]
            self.user = stored["user"]
            stored["plan"] = (
                _plan_to_json(Plan(name="")) | stored["plan"]
            )  # of an earlier version, without newer fields
            if stored["plan"] == asked:
                self.rounds = rounds
            elif any(taken(one) for part in rounds for one in part):
                changed = [name for name in asked if stored["plan"].get(name) != asked[name]]
                found = f"{self.path}: begun with another plan ({', '.join(changed)})"
                raise RunError(found, "", "Give the same flags, or another NAME")

    def save(self) -> None:
        """Put the state in place."""
        rounds = [[one.to_json() for one in part] for part in self.rounds]
        write_json(self.path, {"plan": _plan_to_json(self.plan), "user": self.user, "rounds": rounds})

    def folder(self, part: int) -> Path:
        """Where a part's output is pulled to."""
        return self.root / "parts" / self.plan.part_name(part)

    def complete(self, part: int) -> bool:
        """Whether the part is trained, predicted and pulled."""
        return bool(self.rounds[part]) and self.rounds[part][-1].outcome == _COMPLETE

    def needs_push(self, part: int) -> bool:
        """Return whether the part is not complete and Kaggle has no session of it that may still be running."""
        rounds = self.rounds[part]
        return not self.complete(part) and not (rounds and rounds[-1].running and rounds[-1].version)

    def active(self) -> int:
        """How many sessions may be running."""
        return sum(one.running for part in self.rounds for one in part[-1:])


def _read_round(stored: dict[str, Any]) -> _Round:
    """Return a round from disk. One of an earlier version does not say whether it was tried: it may have been."""
    values = {"tried": True, **stored}
    return _Round(push_token=values.pop("mark"), **values)


def _plan_to_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON gives it back."""
    return dict(json.loads(json.dumps(dataclasses.asdict(plan))))


def describe_plan(plan: Plan) -> dict[str, Any]:
    """What a launch would do, without asking anybody: kernels, order, hours of two T4s, size of the upload."""
    return {
        "kernels": [
            {"slug": plan.slug(number, 0), "folds": list(part) or list(range(_FOLDS)), "machine": "GPU T4 x2"}
            for number, part in enumerate(plan.parts)
        ],
        "flags": list(plan.flags),
        "time_limit": plan.time_limit,
        "inputs": [*plan.datasets, *plan.models, *filter(None, plan.named_files.values())],
        "at_a_time": min(_MOST_SESSIONS, len(plan.parts)),
        "then": ["pull", "ensemble here", "submit", "wait for the score", "ledger"],
        "estimated_hours": round(plan.hours(), 1),
        "weekly_hours": _WEEKLY_HOURS,
        "upload_bytes": len(plan.parts) * (4 * -(-len(_build_bundle()) // 3) + 1000),
        "commit": commit_name(),
    }


def require_name(name: str) -> str:
    """The run's name itself, which is part of kernels' names.

    Raises:
        UsageError: it cannot be.
    """
    if len(name) > 24 or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise UsageError(f"a name {name!r}", "up to 24 small letters and digits, joined by -, are needed")
    return name

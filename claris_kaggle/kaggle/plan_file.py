"""Read the plan of several runs from a TOML file.

A plan has a `description` and one `[[run]]` table for each run: `name`, `folds`, `seeds`, `weights_from`, `datasets`,
`models`, and any option of `claris train` by the name of its config field.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from claris_kaggle.core.config import TrainConfig, apply_preset
from claris_kaggle.core.errors import ClarisError, UsageError
from claris_kaggle.core.files import explain_disk_errors
from claris_kaggle.kaggle.kernel_push import _MAX_SLUG_LENGTH
from claris_kaggle.kaggle.kernel_source import require_file_name, require_references
from claris_kaggle.kaggle.launch import _MAX_SESSIONS_PER_PART
from claris_kaggle.kaggle.launch_state import _DEFAULT_FOLDS, Plan

_PLANS_FOLDER = Path(__file__).parent / "plans"
_PLAN_KEYS = ("description", "run")
_PLAN_HINT = "See docs/kaggle.md for an example"
_RUN_KEYS = ("name", "folds", "seeds", "weights_from", "datasets", "models")
# Folders of a launch of several runs that are not runs.
_SESSIONS, _SAMPLE, _ENSEMBLE = "sessions", "sample", "ensemble"


@dataclass(frozen=True, kw_only=True)
class _RunsPlan:
    """The plan of a launch of several runs.

    Attributes:
        name: name of the launch.
        source: name of a plan in the package, or the path of a file.
        description: one line about the plan.
        runs: the plan of each run, by the name of the run.
    """

    name: str
    source: str
    description: str
    runs: Mapping[str, Plan]

    def command(self) -> str:
        """Return the command of this launch, without its further flags."""
        return f"claris launch {self.name} --plan {self.source}"


def read_plan(source: str, common: Plan) -> _RunsPlan:
    """Return the plan in a TOML file.

    Args:
        source: name of a plan in the package, or the path of a file.
        common: the settings that all runs share. Its name is the name of the launch.
    Raises:
        UsageError: there is no such plan, or it is invalid; the message names the run and the key.
    """
    path = _find_plan(source)
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        raise UsageError(f"--plan {source}: a {path.suffix[1:].upper()} file", "plans are TOML files", _PLAN_HINT)
    try:
        with explain_disk_errors(path):
            content = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{source}: invalid TOML: {error}", "", _PLAN_HINT) from error
    _reject_unknown_keys(content, _PLAN_KEYS, source)
    description = content.get("description", "")
    if not isinstance(description, str):
        raise UsageError(f"{source}: description is {description!r}", "expected a text in quotes")
    tables = content.get("run", [])
    if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
        raise UsageError(f"{source}: run is not a list of tables", "expected [[run]] before each run")
    if not tables:
        raise UsageError(f"{source}: no runs", "expected at least one [[run]] table")
    runs: dict[str, Plan] = {}
    for number, table in enumerate(tables, 1):
        for name, plan in _read_run(table, f"{source}, run {table.get('name') or number}", common):
            if name in runs:
                raise UsageError(f"{source}: two runs have the name {name}", "", "Give each run its own name")
            runs[name] = plan
    return _RunsPlan(name=common.name, source=source, description=description, runs=runs)


def _find_plan(source: str) -> Path:
    """Return the path of a plan in the package, or of a file.

    Raises:
        UsageError: there is neither.
    """
    built_in = {path.stem: path for path in sorted(_PLANS_FOLDER.glob("*.toml"))}
    path = built_in.get(source, Path(source))
    if not path.is_file():
        similar = get_close_matches(source, built_in, 1)
        hint = f"Did you mean {similar[0]}?" if similar else "Give one of these, or the path of a TOML file"
        raise UsageError(f"--plan {source}: no such plan or file", f"the plans are {', '.join(built_in)}", hint)
    return path


def _reject_unknown_keys(table: Mapping[str, object], allowed: Sequence[str], label: str) -> None:
    """Reject keys that have no meaning.

    Raises:
        UsageError: names the first such key, with the most similar allowed one.
    """
    for key in table:
        if key not in allowed:
            similar = get_close_matches(key, allowed, 1)
            hint = f"Did you mean {similar[0]}?" if similar else f"Known keys: {', '.join(allowed)}"
            raise UsageError(f"{label}: unknown key {key!r}", "", hint)


def _read_run(table: Mapping[str, Any], label: str, common: Plan) -> list[tuple[str, Plan]]:
    """Return the name and the plan of each run of a table: one run for each of its seeds.

    Raises:
        UsageError: a key is unknown or missing, or a value is invalid.
    """
    options = [item.name for item in dataclasses.fields(TrainConfig) if item.metadata.get("flag")]
    options.remove("seed")  # one run has one seed; a table has a list of them
    _reject_unknown_keys(table, [*_RUN_KEYS, *options], label)
    for key in ("name", "model"):
        if not isinstance(table.get(key), str) or not table[key]:
            raise UsageError(f"{label}: no {key}", f'expected {key} = "..."')
    given = {name: table[name] for name in options if name in table}
    seeds = _read_seeds(table, label)
    seeded = [{**given, "seed": seed} for seed in seeds] or [given]
    plans = []
    for chosen in seeded:
        name = f"{table['name']}-seed{chosen['seed']}" if len(seeded) > 1 else str(table["name"])
        flags = [word for option, value in chosen.items() for word in (f"--{option.replace('_', '-')}", str(value))]
        plan = dataclasses.replace(
            common,
            name=f"{common.name}-{name}",
            parts=_read_parts(table.get("folds", "all"), 0 if common.folds_from else _DEFAULT_FOLDS, label),
            flags=tuple(flags),
            datasets=(*common.datasets, *_read_references(table, "datasets", (2, 3), "owner/slug", label)),
            models=(
                *common.models,
                *_read_references(table, "models", (5,), "owner/model/framework/variation/version", label),
            ),
            weights_from=str(table.get("weights_from", "")),
        )
        _check_run(name, plan, chosen, label)
        plans.append((name, plan))
    return plans


def _read_seeds(table: Mapping[str, Any], label: str) -> Sequence[int]:
    """Return the seeds of a run; none for the default seed.

    Raises:
        UsageError: they are not a list of different whole numbers.
    """
    seeds = table.get("seeds", [])
    are_integers = isinstance(seeds, list) and all(
        isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds
    )
    if not are_integers or len({*seeds}) != len(seeds) or ("seeds" in table and not seeds):
        raise UsageError(f"{label}: seeds is {seeds!r}", "expected different whole numbers, for example [0, 1]")
    return list(seeds)


def _read_parts(folds: object, k: int, label: str) -> tuple[tuple[int, ...], ...]:
    """Return the folds of each kernel.

    Args:
        folds: the value in the plan.
        k: number of folds of the runs; 0 if the fold file is a dataset of the user, whose folds are not known here.
        label: name of the run in messages.
    Raises:
        UsageError: it is not `all`, `each` or lists that have each fold once.
    """
    if folds == "all":
        return ((),)
    if folds == "each":
        return tuple((fold,) for fold in range(_DEFAULT_FOLDS))
    if isinstance(folds, list) and folds and all(isinstance(part, list) and part for part in folds):
        numbers = [fold for part in folds for fold in part]
        if all(type(fold) is int for fold in numbers) and sorted(numbers) == list(range(k or len(numbers))):
            return tuple(tuple(part) for part in folds)
    once = f"each of the folds 0 to {k - 1} once" if k else "each fold once"
    expected = f'expected "all" (one kernel), "each" (a kernel for each fold), or lists with {once}'
    raise UsageError(f"{label}: folds is {folds!r}", expected, "For example [[0, 1], [2, 3, 4]]")


def _read_references(
    table: Mapping[str, Any], key: str, parts: Sequence[int], example: str, label: str
) -> tuple[str, ...]:
    """Return the references of a run's further inputs.

    Raises:
        UsageError: they are not a list, or a reference has another form.
    """
    names = table.get(key, [])
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise UsageError(f"{label}: {key} is {names!r}", f'expected a list such as ["{example}"]')
    require_references(names, f"{label}: {key}", parts, example)
    return tuple(names)


def _check_run(name: str, plan: Plan, options: Mapping[str, object], label: str) -> None:
    """Reject a run that a session would refuse.

    Raises:
        UsageError: its name cannot be part of a kernel's name, or a training option is invalid.
    """
    longest = max(len(plan.slug(number, _MAX_SESSIONS_PER_PART - 1)) for number in range(len(plan.parts)))
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) or name in (_SESSIONS, _SAMPLE, _ENSEMBLE):
        reserved = f"other than {_SESSIONS}, {_SAMPLE} and {_ENSEMBLE}"
        raise UsageError(f"{label}: invalid name {name!r}", f"expected lower-case letters, digits and -, {reserved}")
    if longest > _MAX_SLUG_LENGTH:
        found = f"{label}: the kernel name {plan.slug(0, 0)} is {longest - _MAX_SLUG_LENGTH} characters too long"
        raise UsageError(found, "", "Give the run or the launch a shorter name")
    if plan.weights_from:
        require_file_name(plan.weights_from, f"{label}: weights_from")
        if "weights" in options:
            found = f"{label}: weights_from {plan.weights_from} and weights {options['weights']}"
            raise UsageError(found, "training starts from only one of them", "Remove one of them")
        options = {**options, "weights": plan.weights_from}
    try:
        apply_preset(options)
    except UsageError as error:
        raise _prefix_error(error, label) from error


def _prefix_error(error: ClarisError, label: str) -> ClarisError:
    """Return the error, of the same type, with the plan and the run before it."""
    return type(error)(f"{label}: {error.found}", error.expected, error.hint)

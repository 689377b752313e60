"""Interleaved rounds, their medians and ratios, and a file for each benchmark that the page is made from.

With `--quick` a benchmark is a trial of itself: one round of little work, figures without meaning, nothing kept
unless `--out DIR` says where.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "performance"
QUICK = "--quick" in sys.argv[1:]
THREADS = 1 if QUICK else os.cpu_count() or 1


@dataclass
class Result:
    """The result of a benchmark.

    Attributes:
        name: of its module.
        title: what was compared.
        unit: of the rates; one without a stroke is no rate, and is not drawn.
        rates: each contender's rates, one a round; the first contender is the one compared with.
        facts: other figures, by what they are.
        notes: what a reader has to know.
    """

    name: str
    title: str
    unit: str
    rates: dict[str, list[float]]
    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    machine: str = ""


@dataclass
class Grid:
    """The result of a benchmark for many sizes, as text in columns.

    Attributes:
        name, title, facts, notes, machine: as those of `Result`.
        columns: column headers.
        rows: one cell per column.
    """

    name: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    machine: str = ""


Kept: TypeAlias = Result | Grid


def option(name: str, default: str) -> str:
    """The value behind the option on the command line."""
    arguments = sys.argv[1:]
    return arguments[arguments.index(name) + 1] if name in arguments[:-1] else default


def interleave(contenders: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Each contender's rate in every round, one after another, so that a busy moment hits all of them.

    Args:
        contenders: each does its work once and returns units a second.
        warm_up: rounds that do not count.
    """
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    if QUICK:
        rounds, warm_up = 1, 0
    for number in range(warm_up + rounds):
        for name, work in contenders.items():
            rate = work()
            if number >= warm_up:
                rates[name].append(rate)
        print(f"round {number + 1} of {warm_up + rounds}", file=sys.stderr, flush=True)
    return rates


def rate_of(units: int, work: Callable[[], Any]) -> Callable[[], float]:
    """The work as a contender: units a second."""

    def measured() -> float:
        began = time.perf_counter()
        work()
        return units / (time.perf_counter() - began)

    return measured


def ratios(rates: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float, float]]:
    """Each contender against the first, round by round: the least, the middle and the greatest."""
    first = next(iter(rates.values()))
    found = {}
    for name, values in rates.items():
        each = [value / base for value, base in zip(values, first, strict=True)]
        found[name] = (min(each), statistics.median(each), max(each))
    return found


def table(result: Kept) -> str:
    """The rates and ratios, or the rows, as a table in Markdown."""
    if isinstance(result, Grid):
        cells = [result.columns, ["---"] * len(result.columns), *result.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in cells)
    lines = [f"| {result.title} | median {result.unit} | range | ratio to the first row |", "| --- " * 4 + "|"]
    for name, (least, middle, greatest) in ratios(result.rates).items():
        values = result.rates[name]
        spread = f"{number(min(values))} to {number(max(values))}"
        against = f"**{middle:.2f}** ({least:.2f} to {greatest:.2f})"
        lines.append(f"| {name} | {number(statistics.median(values))} | {spread} | {against} |")
    return "\n".join(lines)


def number(value: float) -> str:
    """A rate with as many digits as it deserves."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def publish(result: Kept) -> None:
    """Print the result and keep it for the page; a trial is kept only where `--out` says so."""
    result.machine = describe_machine()
    print(table(result))
    for name, text in result.facts.items():
        print(f"{name}: {text}")
    out = option("--out", "" if QUICK else str(RESULTS))
    if not out:
        return
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{result.name}.json").write_text(json.dumps(asdict(result), indent=1) + "\n", "utf-8")


def read_result(path: Path) -> Kept:
    """Return the result that `publish` wrote."""
    content = json.loads(path.read_text("utf-8"))
    return Grid(**content) if "columns" in content else Result(**content)


def describe_machine() -> str:
    """Cores, Python and the libraries that matter."""
    from importlib.metadata import version

    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "numpy"))
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {libraries}"

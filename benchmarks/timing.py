"""Measure contenders in interleaved rounds, format the results as tables, and save them for the page.

A contender is a function that runs the measured code once and returns the rate: units per second.

With `--quick` a benchmark is a short trial: one round of little work. Its figures are meaningless, and it saves nothing
without `--out DIR`.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "performance"
QUICK = "--quick" in sys.argv[1:]
THREADS = 1 if QUICK else os.cpu_count() or 1


@dataclass
class Result:
    """The rates of the contenders of a benchmark.

    Attributes:
        name: module of the benchmark.
        title: what is compared.
        unit: unit of the rates. Only units with a slash, such as images/s, are shown in the plot of the page.
        rates: rates of each contender, one per round. The others are compared with the first contender.
        facts: other figures and their descriptions.
        notes: conditions and limits of the measurement.
        machine: cores and versions, filled in by `publish`.
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
    """The result of a benchmark as a table of text.

    Attributes:
        name, title, facts, notes, machine: as in `Result`.
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


AnyResult: TypeAlias = Result | Grid


def option(name: str, default: str) -> str:
    """Return the value of an option of the command line."""
    arguments = sys.argv[1:]
    return arguments[arguments.index(name) + 1] if name in arguments[:-1] else default


def interleave(
    contenders: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 1, end: float = math.inf
) -> dict[str, list[float]]:
    """Return the rates of each contender, one per round.

    Each round runs all contenders, so that other load on the machine affects all of them.

    Args:
        contenders: the contenders by name.
        rounds: number of measured rounds.
        warm_up: number of rounds before them, whose rates are dropped.
        end: time of `time.monotonic()`. After the first measured round, no round starts that would end later.
    """
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    if QUICK:
        rounds, warm_up = 1, 0
    began = time.monotonic()
    for index in range(warm_up + rounds):
        for name, measure_rate in contenders.items():
            rate = measure_rate()
            if index >= warm_up:
                rates[name].append(rate)
        print(f"round {index + 1} of {warm_up + rounds}", file=sys.stderr, flush=True)
        now = time.monotonic()
        if index >= warm_up and now + (now - began) / (index + 1) > end:
            break
    return rates


def rate_of(units: int, function: Callable[[], Any]) -> Callable[[], float]:
    """Return a contender that calls the function, which processes this number of units."""

    def measure_rate() -> float:
        began = time.perf_counter()
        function()
        return units / (time.perf_counter() - began)

    return measure_rate


def measure_cpu_seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU time of a call in this process, and its result."""
    began = time.process_time()
    result = function()
    return time.process_time() - began, result


def compute_ratios(rates: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float, float]]:
    """Return minimum, median and maximum of each contender's ratio to the first contender in the same round."""
    first = next(iter(rates.values()))
    summary = {}
    for name, values in rates.items():
        ratios = [value / base for value, base in zip(values, first, strict=True)]
        summary[name] = (min(ratios), statistics.median(ratios), max(ratios))
    return summary


def format_markdown(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [f"| {' | '.join(map(str, cells))} |" for cells in (columns, ["---"] * len(columns), *rows)]


def format_result(result: AnyResult) -> str:
    """Return the rates and ratios, or the rows, as a Markdown table."""
    if isinstance(result, Grid):
        return "\n".join(format_markdown(result.columns, result.rows))
    rows = []
    for name, (least, middle, greatest) in compute_ratios(result.rates).items():
        values = result.rates[name]
        spread = f"{format_rate(min(values))} to {format_rate(max(values))}"
        ratio = f"**{middle:.2f}** ({least:.2f} to {greatest:.2f})"
        rows.append((name, format_rate(statistics.median(values)), spread, ratio))
    return "\n".join(format_markdown([result.title, f"median {result.unit}", "range", "ratio to the first row"], rows))


def format_rate(value: float) -> str:
    """Return a rate with three significant digits, or as an integer from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def publish(result: AnyResult) -> None:
    """Print the result and save it for the page. A trial with `--quick` is saved only with `--out`."""
    result.machine = describe_machine()
    print(format_result(result))
    for name, text in result.facts.items():
        print(f"{name}: {text}")
    out = option("--out", "" if QUICK else str(RESULTS))
    if not out:
        return
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{result.name}.json").write_text(json.dumps(asdict(result), indent=1) + "\n", "utf-8")


def read_result(path: Path) -> AnyResult:
    """Return the result that `publish` wrote."""
    content = json.loads(path.read_text("utf-8"))
    return Grid(**content) if "columns" in content else Result(**content)


def describe_machine() -> str:
    """Return the number of cores, the architecture, and the versions of Python and the main libraries."""
    from importlib.metadata import version

    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "numpy"))
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {libraries}"

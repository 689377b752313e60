"""Inject every fault, kill at random moments, and write the table of `docs/reliability.md`.

python -m benchmarks.reliability [--out docs/reliability.md]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
SUITES = ("tests/test_faults.py", "tests/test_survival.py", "tests/test_kaggle.py", "tests/test_session.py")
SAID = re.compile(r"(survived|seconds to the end|worst time|requests of a plain launch|kills survived)[^\n]*")


class Case(NamedTuple):
    """One injected fault: the promise, what was injected, whether it held, and what it printed."""

    promise: str
    fault: str
    held: bool
    said: str


def run_suites() -> list[Case]:
    """Run the suites, slow tests too, and return what came of each case."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "--junitxml",
                str(report),
                "-o",
                "junit_logging=system-out",
                *SUITES,
            ],
            cwd=ROOT,
            check=False,
        )
        return [read_case(one) for one in ElementTree.parse(report).iter("testcase")]


def read_case(element: ElementTree.Element) -> Case:
    """The case of one element of the report."""
    name = element.get("name", "")
    promise, _, fault = name.removeprefix("test_").partition("[")
    held = element.find("failure") is None and element.find("error") is None and element.find("skipped") is None
    found = SAID.search(element.findtext("system-out") or "")
    return Case(promise.replace("_", " "), fault.rstrip("]"), held, found.group(0) if found else "")


def write_page(cases: list[Case]) -> str:
    """The page."""
    held = sum(case.held for case in cases)
    lines = [
        "# What was injected, and what held",
        "",
        f"Written by `python -m benchmarks.reliability` on {time.strftime('%Y-%m-%d')}: "
        f"{held} of {len(cases)} cases held.",
        "",
        "Each fault case checks three things: one line that says what was found, what was needed and what to do; the",
        "exit code; and that every file that was whole before is so still, byte for byte.",
        "",
        "| promise | injected | held |",
        "| --- | --- | --- |",
    ]
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.promise].append(case)
    for promise, group in groups.items():
        faults = ", ".join(case.fault for case in group if case.fault)
        said = "; ".join(case.said for case in group if case.said)
        lines.append(f"| {promise} | {faults or said} | {sum(case.held for case in group)} of {len(group)} |")
    printed = [case.said for case in cases if case.said]
    return "\n".join([*lines, "", "Printed by the run:", "", *(f"- {text}" for text in printed), ""])


def main() -> None:
    """Run, write the page, print its first line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "reliability.md")
    out: Path = parser.parse_args().out
    cases = run_suites()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(write_page(cases), "utf-8")
    print(f"{out}: {sum(case.held for case in cases)} of {len(cases)} cases held")


if __name__ == "__main__":
    main()

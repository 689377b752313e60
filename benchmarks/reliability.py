"""Run the fault-injection tests, measure the duration of checkpoints, and write `docs/reliability.md`.

python -m benchmarks.reliability [--out docs/reliability.md]
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import torch

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.models.factory import create_model
from claris_kaggle.runtime.distributed import World
from claris_kaggle.training.checkpoint import _CheckpointWriter
from claris_kaggle.training.learner import _Learner
from claris_kaggle.training.setup import TrainJob

ROOT = Path(__file__).parent.parent
SUITES = (
    "tests/system/test_bad_inputs.py",
    "tests/system/test_repairs.py",
    "tests/system/test_disk_failures.py",
    "tests/system/test_fuzz.py",
    "tests/system/test_kills.py",
    "tests/system/test_processes.py",
    "tests/training/test_learner.py",
    "tests/kaggle/test_launch.py",
    "tests/kaggle/test_kaggle_trouble.py",
    "tests/kaggle/test_session.py",
)
OUTPUT_LINE = re.compile(r"(survived|seconds to the end|worst time|requests of a plain launch|kills survived)[^\n]*")


class Case(NamedTuple):
    """One injected fault: the guarantee, the fault, whether the test passed, and what it printed."""

    guarantee: str
    fault: str
    passed: bool
    output: str


def run_suites() -> list[Case]:
    """Run the test files, including slow tests, and return the result of each case."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        subprocess.run(
            [
                sys.executable, "-m", "pytest", "-q", "--junitxml", str(report), "-o", "junit_logging=system-out",
                *SUITES,
            ],
            cwd=ROOT,
            check=False,
        )  # fmt: skip
        return [read_case(element) for element in ElementTree.parse(report).iter("testcase")]


def read_case(element: ElementTree.Element) -> Case:
    """Return the case of a `testcase` element of pytest's report."""
    name = element.get("name", "")
    guarantee, _, fault = name.removeprefix("test_").partition("[")
    passed = element.find("failure") is None and element.find("error") is None and element.find("skipped") is None
    line = OUTPUT_LINE.search(element.findtext("system-out") or "")
    return Case(guarantee.replace("_", " "), fault.rstrip("]"), passed, line.group(0) if line else "")


def time_checkpoints(rounds: int = 7) -> str:
    """Return a sentence on how long a checkpoint of DenseNet-121 with Adam delays training, and how long it takes."""
    config = TrainConfig(weights="none", batch_size=4, lr=1e-3, color=0.3)
    learner = _Learner(config, World(0, 0, 1, torch.device("cpu")), create_model(config.model))
    learner.model(torch.zeros(2, 3, 96, 96)).sum().backward()
    learner.optimizer.step()
    delays, totals = [], []
    with tempfile.TemporaryDirectory() as folder, _CheckpointWriter(Path(folder) / "last.ckpt") as writer:
        for _ in range(rounds):
            began = time.perf_counter()
            writer.save(learner.state())
            delays.append(time.perf_counter() - began)
            writer.wait()
            totals.append(time.perf_counter() - began)
        size = writer.path.stat().st_size
    delay, interval = statistics.median(delays), TrainJob.checkpoint_minutes
    return (
        f"a checkpoint of {size / 1e6:.0f} MB (DenseNet-121 and Adam) delays training by {delay:.2f} s (median of "
        f"{rounds}; {min(delays):.2f} to {max(delays):.2f}) and is on disk after {statistics.median(totals):.2f} s; "
        f"one every {interval:g} minutes: {delay * 60 / interval:.1f} s per hour of training"
    )


def format_fault_page(cases: list[Case], checkpoints: str) -> str:
    """Return the page as Markdown."""
    passed = sum(case.passed for case in cases)
    lines = [
        "# Fault injection",
        "",
        f"Written by `python -m benchmarks.reliability` on {time.strftime('%Y-%m-%d')}: "
        f"{passed} of {len(cases)} cases passed.",
        "",
        "Each fault case checks three things: a one-line error that says what was found, what was expected and what to",
        "do; the exit code; and that every file that was complete before is still identical, byte for byte.",
        "",
        "| guarantee | injected | passed |",
        "| --- | --- | --- |",
    ]
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.guarantee].append(case)
    for guarantee, group in groups.items():
        faults = ", ".join(case.fault for case in group if case.fault)
        output = "; ".join(case.output for case in group if case.output)
        lines.append(f"| {guarantee} | {faults or output} | {sum(case.passed for case in group)} of {len(group)} |")
    printed = [case.output for case in cases if case.output]
    return "\n".join([*lines, "", "Output of the run:", "", *(f"- {text}" for text in [*printed, checkpoints]), ""])


def main() -> None:
    """Run the benchmark, write the page and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "reliability.md")
    out: Path = parser.parse_args().out
    checkpoints = time_checkpoints()
    print(checkpoints)
    cases = run_suites()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(format_fault_page(cases, checkpoints), "utf-8")
    print(f"{out}: {sum(case.passed for case in cases)} of {len(cases)} cases passed")


if __name__ == "__main__":
    main()

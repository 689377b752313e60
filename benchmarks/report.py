"""Measure the time and file size of a report of one run and of two runs of the competition's size.

python -m benchmarks.report
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.tables import write_runs
from benchmarks.timing import describe_machine, measure_cpu_seconds
from claris_kaggle.data.fold_file import Folds, write_folds
from claris_kaggle.evaluation.predictions import read_oof
from claris_kaggle.reporting.report import write_report


def main() -> None:
    """Write both reports and print the results."""
    print(describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        run_dirs, slides = write_runs(Path(folder))
        for run_dir in run_dirs[:2]:
            oof = read_oof(run_dir.oof)
            write_folds(run_dir.folds, Folds(oof.ids, oof.labels, slides, oof.fold), {})
        for runs in (1, 2):
            began, path = time.perf_counter(), Path(folder) / "report.html"
            cpu_seconds, page = measure_cpu_seconds(lambda: write_report(run_dirs[:runs], path))  # noqa: B023
            seconds, size = time.perf_counter() - began, page.stat().st_size
            print(f"{runs} x {len(slides):,} predictions: {seconds:.1f} s ({cpu_seconds:.1f} CPU s), {size:,} bytes")


if __name__ == "__main__":
    main()

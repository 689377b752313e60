"""Seconds and bytes of a report of predictions of the competition's size, of one run and of two.

python -m benchmarks.report
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.tables import seconds, write_runs
from benchmarks.timing import describe_machine
from claris_kaggle.data.fold_file import Folds, write_folds
from claris_kaggle.evaluation.predictions import read_oof
from claris_kaggle.reporting.report import write_report


def main() -> None:
    """Make both pages and print what they took."""
    print(describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        run_dirs, slides = write_runs(Path(folder))
        for run_dir in run_dirs[:2]:
            oof = read_oof(run_dir.oof)
            write_folds(run_dir.folds, Folds(oof.ids, oof.labels, slides, oof.fold), {})
        for runs in (1, 2):
            busy = time.process_time()
            took, page = seconds(lambda: write_report(run_dirs[:runs], Path(folder) / "report.html"))  # noqa: B023
            busy = time.process_time() - busy
            size = page.stat().st_size
            print(f"{runs} x {len(slides):,} predictions: {took:.1f} s ({busy:.1f} s of a core), {size:,} bytes")


if __name__ == "__main__":
    main()

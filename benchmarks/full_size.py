"""Time, CPU time and memory of each command at the competition's size and at a tenth of it.

python -m benchmarks.full_size --folder FOLDER    # 277,483 patches: needs 20 GB of free disk space in FOLDER
python -m benchmarks.full_size --quick            # a short trial with some hundred patches

The patches are random rotations and shifts of the patches of `benchmarks.patches`, with noise, so that each is unique.
Each stage is a real command in a process of its own. `ensemble` and `report` read five runs with simulated predictions:
training five runs would take hours and would not change the cost of these commands.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.patches import bench_patches
from benchmarks.simulation import draw_scores, to_probabilities
from benchmarks.timing import QUICK, Grid, option, publish
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data.fold_file import read_folds
from claris_kaggle.data.patches import _encode_tiff, patch_id
from claris_kaggle.data.tables import read_sample, write_table
from claris_kaggle.evaluation.predictions import Oof, write_run_oof, write_test

TRAIN, TEST, RUNS, SLIDES = 220_025, 57_458, 5, 200
_WRITTEN_AT_A_TIME = 2_000
if QUICK:
    TRAIN, TEST, SLIDES = 600, 120, 12
    _WRITTEN_AT_A_TIME = 250


@dataclass
class Usage:
    """The resources that a process used.

    Attributes:
        seconds: wall time.
        busy: CPU time of all its threads and child processes, in seconds.
        megabytes: the largest sum of its own memory, in 1e6 bytes. Pages of mapped files are not counted.
    """

    seconds: float
    busy: float
    megabytes: float


def draw_patches(count: int, seed: int, kinds: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Yield unique patches: uint8 [96, 96, 3], each made from one of `kinds` ([N, 96, 96, 3])."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        pixels = np.rot90(kinds[generator.integers(len(kinds))], generator.integers(4))
        pixels = np.roll(pixels, tuple(generator.integers(96, size=2)), (0, 1))
        noise = generator.integers(-8, 9, pixels.shape, dtype=np.int8)
        yield np.clip(pixels + noise.astype(np.int16), 0, 255).astype(np.uint8)


def write_split(folder: Path, count: int, seed: int, kinds: NDArray[np.uint8]) -> list[str]:
    """Write patches as files of the competition, and return their ids."""
    folder.mkdir(parents=True)

    def write(pixels: NDArray[np.uint8]) -> str:
        name = patch_id(pixels)
        (folder / f"{name}.tif").write_bytes(_encode_tiff(pixels))
        return name

    patches, ids = draw_patches(count, seed, kinds), []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while len(ids) < count:
            ids += pool.map(write, islice(patches, _WRITTEN_AT_A_TIME))
            print(f"{folder}: {len(ids):,} of {count:,} patches written", file=sys.stderr, flush=True)
    return ids


def write_data(root: Path, train: int, test: int, kinds: NDArray[np.uint8]) -> DataDir:
    """Write a competition folder with slides; a finished one is used again."""
    data = DataDir(root)
    if data.sample.exists():
        return data
    shutil.rmtree(root, ignore_errors=True)
    ids = write_split(root / "train", train, 0, kinds)
    generator = np.random.default_rng(1)
    slides = generator.integers(SLIDES, size=train)
    labels = generator.random(train) < np.linspace(0.1, 0.7, SLIDES)[slides]
    test_ids = write_split(root / "test", test, 2, kinds)
    write_table(data.labels, {"id": ids, "label": labels.astype(np.int8)})
    write_table(data.slides, {"id": ids, "wsi": [f"slide{number:03d}" for number in slides]})
    write_table(data.sample, {"id": test_ids, "label": [0] * test})
    return data


def write_predictions(root: Path, data: DataDir, folds_path: Path) -> list[RunDir]:
    """Write five runs with simulated predictions for the patches of the folder."""
    folds, test_ids = read_folds(folds_path), read_sample(data.sample)
    generator = np.random.default_rng(3)
    rows = len(folds.ids)
    scores = draw_scores(
        generator, slides=SLIDES, patches=rows // SLIDES + 50, effect=0.4, strengths=tuple(np.linspace(2.5, 3.0, RUNS))
    )
    order = np.argsort(np.argsort(folds.labels, kind="stable"), kind="stable")
    known = np.argsort(scores.labels[:rows], kind="stable")
    found = []
    for number in range(RUNS):
        run_dir = RunDir(root / f"run{number}")
        shutil.rmtree(run_dir.root, ignore_errors=True)
        run_dir.root.mkdir(parents=True)
        values = to_probabilities(scores.values[:rows, number])[known][order]
        write_run_oof(run_dir.oof, Oof(list(folds.ids), folds.labels, folds.fold, values))
        write_test(run_dir.test, test_ids, generator.random(len(test_ids)).astype(np.float32))
        found.append(run_dir)
    return found


def own_megabytes(pid: int) -> float:
    """Return the memory of a process and its children without mapped files, in 1e6 bytes; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    own = sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
    return own * 1024 / 1e6 + sum(own_megabytes(int(child)) for child in children)


@contextmanager
def peak_memory(pid: int) -> Iterator[list[float]]:
    """Poll the memory of a process ten times a second; the list that is yielded holds the peak, in 1e6 bytes."""
    peak, ended = [0.0], threading.Event()

    def poll() -> None:
        while not ended.wait(0.1):
            peak[0] = max(peak[0], own_megabytes(pid))

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def use_command(command: Sequence[str], **options: Any) -> tuple[Usage, str]:
    """Run a command with these options of `subprocess.Popen`, and return what it used and what it printed.

    Raises:
        SystemExit: the command failed.
    """
    began, before = time.monotonic(), os.times()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    with peak_memory(process.pid) as peak:
        said, _ = process.communicate()
    after = os.times()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}\n{said[-2000:]}")
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    return Usage(time.monotonic() - began, busy, peak[0]), said


def use(*arguments: object) -> Usage:
    """Run a command of the library, and return what it used."""
    return use_command([sys.executable, "-m", "claris_kaggle", *map(str, arguments)])[0]


def run_stages(root: Path, train: int, test: int, kinds: NDArray[np.uint8]) -> dict[str, Usage]:
    """Run all stages on a folder of that size."""
    data = write_data(root / "data", train, test, kinds)
    places = ["--data", data.root, "--cache", root / "cache"]
    folds, run, submission = root / "folds.csv", root / "runs" / "tiny", root / "submission.csv"
    for path in (root / "cache", run):
        shutil.rmtree(path, ignore_errors=True)
    for path in (folds, submission):
        path.unlink(missing_ok=True)
    network = ["--model", "tiny", "--weights", "none", "--fold", 0, "--epochs", 1]
    stages: dict[str, Sequence[object]] = {
        "check": ["check", "--data", data.root],
        "pack": ["pack", *places],
        "open the cache again": ["pack", *places],
        "verify the cache": ["pack", *places, "--verify"],
        "folds by slide": ["folds", *places, "--slides", data.root / "slides.csv", "--out", folds],
        "train one fold, one epoch, tiny": ["train", *places, "--folds", folds, "--run", run, *network],
        "predict one fold, one view": ["predict", *places, "--run", run, "--views", 1],
    }
    used = {name: use(*arguments) for name, arguments in stages.items()}
    runs = [one.root for one in write_predictions(root / "predictions", data, folds)]
    used[f"ensemble of {RUNS} runs"] = use(
        "ensemble", *runs, "--data", data.root, "--method", "auto", "--out", submission
    )
    used[f"report of {RUNS} runs"] = use("report", *runs, "--out", root / "report.html")
    used["check the submission"] = use("submission", "check", submission, "--data", data.root)
    return used


def write_row(name: str, small: Usage, full: Usage, growth: float) -> list[str]:
    """Return a row of the table."""
    cells = [name]
    for one in (small, full):
        cells += [f"{one.seconds:.1f}", f"{one.busy:.1f}", f"{one.megabytes:,.0f}"]
    return [*cells, f"{full.busy / max(small.busy, 0.01):.1f} of {growth:.0f}"]


def main() -> None:
    """Run the stages at both sizes, print and keep the table."""
    with bench_patches() as bench:
        kinds = np.array(bench.pack.pixels[:1000])
        about = bench.about
    share = 2 if QUICK else 10
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(option("--folder", temporary))
        small = run_stages(root / "small", TRAIN // share, TEST // share, kinds)
        full = run_stages(root / "full", TRAIN, TEST, kinds)
    columns = ["stage"]
    for rows in ((TRAIN + TEST) // share, TRAIN + TEST):
        columns += [f"{rows:,} patches: s", "CPU s", "MB"]
    publish(
        Grid(
            name="full_size",
            title="Commands at the competition's size and at a tenth of it",
            columns=[*columns, "growth of CPU s"],
            rows=[write_row(name, small[name], used, share) for name, used in full.items()],
            notes=[
                f"Unique patches made from {about}. MB: the peak of the process's own memory, without mapped files. "
                "The runs of ensemble and report have simulated predictions."
            ],
        )
    )


if __name__ == "__main__":
    main()

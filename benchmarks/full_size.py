"""Measure time, CPU time and memory of each command at the competition's size and at a tenth of it.

python -m benchmarks.full_size --folder FOLDER    # 277,483 patches: needs 20 GB of free disk space in FOLDER
python -m benchmarks.full_size --quick            # a short trial with some hundred patches

The patches are random rotations and shifts of the patches of `benchmarks.patches`, with noise, so that each is unique.
Each stage is a real command in a process of its own. `ensemble` and `report` read five runs with simulated predictions:
training five runs would take hours and would not change the cost of these commands.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.patches import prepare_patches
from benchmarks.processes import Usage, measure_claris
from benchmarks.simulation import simulate_scores, to_probabilities, write_simulated_run
from benchmarks.timing import QUICK, Grid, option, publish
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data.fold_file import read_folds
from claris_kaggle.data.patches import _encode_tiff, patch_id
from claris_kaggle.data.tables import read_sample, write_table
from claris_kaggle.evaluation.predictions import Oof

TRAIN, TEST, RUNS, SLIDES = 220_025, 57_458, 5, 200
_CHUNK = 2_000  # patches between two lines of progress
if QUICK:
    TRAIN, TEST, SLIDES = 600, 120, 12
    _CHUNK = 250


def generate_patches(count: int, seed: int, templates: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Yield unique patches: uint8 [96, 96, 3], each made from one of the templates ([N, 96, 96, 3])."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        pixels = np.rot90(templates[generator.integers(len(templates))], generator.integers(4))
        pixels = np.roll(pixels, tuple(generator.integers(96, size=2)), (0, 1))
        noise = generator.integers(-8, 9, pixels.shape, dtype=np.int8)
        yield np.clip(pixels + noise.astype(np.int16), 0, 255).astype(np.uint8)


def write_split(folder: Path, count: int, seed: int, templates: NDArray[np.uint8]) -> list[str]:
    """Write generated patches as files of the competition, and return their ids."""
    folder.mkdir(parents=True)

    def write_patch(pixels: NDArray[np.uint8]) -> str:
        name = patch_id(pixels)
        (folder / f"{name}.tif").write_bytes(_encode_tiff(pixels))
        return name

    patches, ids = generate_patches(count, seed, templates), []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while len(ids) < count:
            ids += pool.map(write_patch, islice(patches, _CHUNK))
            print(f"{folder}: {len(ids):,} of {count:,} patches written", file=sys.stderr, flush=True)
    return ids


def write_competition(root: Path, train: int, test: int, templates: NDArray[np.uint8]) -> DataDir:
    """Write a competition folder with a slide map. A complete folder is reused."""
    data = DataDir(root)
    if data.sample.exists():
        return data
    shutil.rmtree(root, ignore_errors=True)
    ids = write_split(root / "train", train, 0, templates)
    generator = np.random.default_rng(1)
    slides = generator.integers(SLIDES, size=train)
    labels = generator.random(train) < np.linspace(0.1, 0.7, SLIDES)[slides]
    test_ids = write_split(root / "test", test, 2, templates)
    write_table(data.labels, {"id": ids, "label": labels.astype(np.int8)})
    write_table(data.slides, {"id": ids, "wsi": [f"slide{number:03d}" for number in slides]})
    write_table(data.sample, {"id": test_ids, "label": [0] * test})
    return data


def write_predictions(root: Path, data: DataDir, folds_path: Path) -> list[RunDir]:
    """Write runs with simulated predictions for the patches of the folder."""
    folds, test_ids = read_folds(folds_path), read_sample(data.sample)
    generator = np.random.default_rng(3)
    rows = len(folds.ids)
    scores = simulate_scores(
        generator, slides=SLIDES, patches=rows // SLIDES + 50, effect=0.4, strengths=tuple(np.linspace(2.5, 3.0, RUNS))
    )
    # Both are sorted by label, so that patches of a class get scores of that class.
    rank_by_label = np.argsort(np.argsort(folds.labels, kind="stable"), kind="stable")
    sorted_by_label = np.argsort(scores.labels[:rows], kind="stable")
    runs = []
    for run in range(RUNS):
        values = to_probabilities(scores.values[:rows, run])[sorted_by_label][rank_by_label]
        oof = Oof(list(folds.ids), folds.labels, folds.fold, values)
        runs.append(write_simulated_run(root / f"run{run}", oof, test_ids, generator))
    return runs


def run_stages(root: Path, train: int, test: int, templates: NDArray[np.uint8]) -> dict[str, Usage]:
    """Run all commands on a competition folder of that size, and return what each used."""
    data = write_competition(root / "data", train, test, templates)
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
    usages = {name: measure_claris(*arguments) for name, arguments in stages.items()}
    runs = [one.root for one in write_predictions(root / "predictions", data, folds)]
    usages[f"ensemble of {RUNS} runs"] = measure_claris(
        "ensemble", *runs, "--data", data.root, "--method", "auto", "--out", submission
    )
    usages[f"report of {RUNS} runs"] = measure_claris("report", *runs, "--out", root / "report.html")
    usages["check the submission"] = measure_claris("submission", "check", submission, "--data", data.root)
    return usages


def format_row(name: str, small: Usage, full: Usage, growth: float) -> list[str]:
    """Return the cells of a command; `growth` is the ratio of the numbers of patches."""
    cells = [name]
    for usage in (small, full):
        cells += [f"{usage.seconds:.1f}", f"{usage.cpu_seconds:.1f}", f"{usage.megabytes:,.0f}"]
    return [*cells, f"{full.cpu_seconds / max(small.cpu_seconds, 0.01):.1f} of {growth:.0f}"]


def main() -> None:
    """Run the benchmark, print the result and save it."""
    with prepare_patches() as patches:
        templates = np.array(patches.pack.pixels[:1000])
        description = patches.description
    growth = 2 if QUICK else 10
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(option("--folder", temporary))
        small = run_stages(root / "small", TRAIN // growth, TEST // growth, templates)
        full = run_stages(root / "full", TRAIN, TEST, templates)
    columns = ["stage"]
    for rows in ((TRAIN + TEST) // growth, TRAIN + TEST):
        columns += [f"{rows:,} patches: s", "CPU s", "MB"]
    publish(
        Grid(
            name="full_size",
            title="Commands at the competition's size and at a tenth of it",
            columns=[*columns, "growth of CPU s"],
            rows=[format_row(name, small[name], usage, growth) for name, usage in full.items()],
            notes=[
                f"Unique patches made from {description}. MB: the peak of the process's own memory, without mapped "
                "files. The runs of ensemble and report have simulated predictions."
            ],
        )
    )


if __name__ == "__main__":
    main()

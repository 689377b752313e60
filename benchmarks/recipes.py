"""Measure the out-of-fold AUC of recipes from random weights on real patches, with several seeds, and their cost.

python -m benchmarks.recipes [--only NAME ...] [--seeds 0 1 2] [--folds 0 1 2 3 4] [--jobs 2] [--table]

Finished units are saved in docs/recipes, and the same command resumes. A seed changes weights, order and augmentation,
but not the folds, so that differences are paired.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks.patches import SAMPLE
from benchmarks.processes import run_claris
from benchmarks.recipe_page import write_page
from benchmarks.recipe_rows import RECIPES, read_unit, unit_path
from benchmarks.timing import ROOT
from claris_kaggle.core.files import write_text
from claris_kaggle.data.fold_file import Folds, read_folds
from claris_kaggle.evaluation.predictions import read_oof

FOLDS = (0, 1, 2, 3, 4)


def link_patches(folders: Sequence[Path], out: Path) -> Path:
    """Create a competition folder in `out` with links to the training patches of all folders, and one test patch."""
    data = out / "data"
    header, first, *_ = (folders[0] / "sample_submission.csv").read_text("utf-8").splitlines()
    patches = [path for folder in folders for path in (folder / "train").glob("*.tif")]
    for path in [*patches, folders[0] / "test" / f"{first.split(',')[0]}.tif"]:
        link = data / path.parent.name / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(path.resolve())
    tables = [(folder / "train_labels.csv").read_text("utf-8").splitlines()[1:] for folder in folders]
    rows = ["id,label", *(row for table in tables for row in table)]
    write_text(data / "train_labels.csv", "\n".join(rows) + "\n")  # replaces a link instead of writing through it
    write_text(data / "sample_submission.csv", f"{header}\n{first}\n")
    return data


def cpu_precision() -> str:
    """Return the fastest precision on this processor."""
    return "bf16" if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else "fp32"


def run_unit(name: str, seed: int, out: Path, folds: Sequence[int]) -> None:
    """Train and predict one recipe with one seed, or resume it, and save the probabilities."""
    recipe, path = RECIPES[name], unit_path(name, seed)
    folder = out / path.stem
    places = ["--data", out / "data", "--cache", out / "cache", "--run", folder]
    flags = [word for key, value in recipe.changes.items() for word in ("--" + key.replace("_", "-"), value)]
    precision = cpu_precision()
    run_claris(
        "train", *places, "--folds", out / "folds.csv", "--fold", *folds, "--weights", "none",
        "--seed", seed, "--precision", precision, "--threads", 1, "--preset", recipe.preset, *flags,
    )  # fmt: skip
    run_claris("predict", *places)
    rows = {patch: row for row, patch in enumerate(read_folds(out / "folds.csv").ids)}
    probabilities: list[float | None] = [None] * len(rows)
    for fold in folds:
        oof = read_oof(folder / f"fold{fold}" / "oof.csv")
        for patch, value in zip(oof.ids, oof.probabilities, strict=True):
            probabilities[rows[patch]] = round(float(value), 5)
    content = {
        "name": name,
        "seed": seed,
        "options": recipe.options,
        "precision": precision,
        "probabilities": probabilities,
    }
    write_text(path, json.dumps(content) + "\n")


def is_finished(name: str, seed: int, folds: Folds, wanted: Sequence[int]) -> bool:
    """Return True if the probabilities of these folds are saved for the current options of the recipe."""
    path = unit_path(name, seed)
    unit = read_unit(path) if path.exists() else None
    return unit is not None and all(np.isfinite(unit.probabilities[folds.valid_rows(fold)]).all() for fold in wanted)


def main() -> None:
    """Run the unfinished units among the selected ones, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(RECIPES), choices=list(RECIPES), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folds", nargs="+", type=int, default=FOLDS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="number of runs at once, each with one thread")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmark-runs")
    parser.add_argument("--table", action="store_true", help="only write the page")
    arguments = parser.parse_args()
    if not SAMPLE.is_dir():
        parser.error(f"{SAMPLE} not found; expected the sample of real patches, a competition folder")
    os.environ.update(NO_ALBUMENTATIONS_UPDATE="1", OMP_NUM_THREADS="1")
    data = link_patches([SAMPLE], arguments.out)
    run_claris("folds", "--data", data, "--out", arguments.out / "folds.csv", "--cache", arguments.out / "cache")
    run_claris("pack", "--data", data, "--cache", arguments.out / "cache")
    folds = read_folds(arguments.out / "folds.csv")
    todo = [
        (name, seed)
        for seed in arguments.seeds
        for name in arguments.only
        if not is_finished(name, seed, folds, arguments.folds)
    ]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        jobs = [] if arguments.table else [
            pool.submit(run_unit, name, seed, arguments.out, arguments.folds) for name, seed in todo
        ]  # fmt: skip
        for job in jobs:
            job.result()
    write_page(arguments.out)


if __name__ == "__main__":
    main()

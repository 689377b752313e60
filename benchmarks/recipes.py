"""Recipes from random weights on real patches: out-of-fold AUC over seeds, beside what each costs.

python -m benchmarks.recipes [--only NAME ...] [--seeds 0 1 2] [--folds 0 1 2 3 4] [--jobs 2] [--table]

What is done is kept in docs/recipes; the same command goes on. Seeds change weights, order and augmentation; the
folds stay, so that differences are paired.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks.patches import SAMPLE
from benchmarks.recipe_page import write_page
from benchmarks.recipe_rows import RECIPES, kept_at, read_unit
from benchmarks.timing import ROOT
from claris_kaggle.core.files import write_text
from claris_kaggle.data.fold_file import Folds, read_folds
from claris_kaggle.evaluation.predictions import read_oof

FOLDS = (0, 1, 2, 3, 4)


def claris(*arguments: object) -> None:
    """Run the command, its talk on our stderr."""
    command = [sys.executable, "-m", "claris_kaggle", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def link_patches(folders: Sequence[Path], out: Path) -> Path:
    """Make a competition folder in `out` with links to the training patches of all folders, and one test patch."""
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
    """Return the fastest precision of this processor."""
    return "bf16" if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else "fp32"


def run(name: str, seed: int, out: Path, folds: Sequence[int]) -> None:
    """Train and predict, or go on with it, and keep the probabilities."""
    recipe, kept = RECIPES[name], kept_at(name, seed)
    folder = out / kept.stem
    places = ["--data", out / "data", "--cache", out / "cache", "--run", folder]
    flags = [word for key, value in recipe.changes.items() for word in ("--" + key.replace("_", "-"), value)]
    precision = cpu_precision()
    claris(
        "train", *places, "--folds", out / "folds.csv", "--fold", *folds, "--weights", "none",
        "--seed", seed, "--precision", precision, "--threads", 1, "--preset", recipe.preset, *flags,
    )  # fmt: skip
    claris("predict", *places)
    where = {one: row for row, one in enumerate(read_folds(out / "folds.csv").ids)}
    values: list[float | None] = [None] * len(where)
    for fold in folds:
        oof = read_oof(folder / f"fold{fold}" / "oof.csv")
        for one, value in zip(oof.ids, oof.probabilities, strict=True):
            values[where[one]] = round(float(value), 5)
    content = {
        "name": name,
        "seed": seed,
        "options": recipe.options,
        "precision": precision,
        "probabilities": values,
    }
    write_text(kept, json.dumps(content) + "\n")


def is_done(name: str, seed: int, folds: Folds, wanted: Sequence[int]) -> bool:
    """Whether the figures of those folds are there, of the recipe as it is now."""
    path = kept_at(name, seed)
    unit = read_unit(path) if path.exists() else None
    return unit is not None and all(np.isfinite(unit.probabilities[folds.valid_rows(fold)]).all() for fold in wanted)


def main() -> None:
    """Run what is asked for and not yet done, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(RECIPES), choices=list(RECIPES), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folds", nargs="+", type=int, default=FOLDS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at once, a thread each")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmark-runs")
    parser.add_argument("--table", action="store_true", help="only write the page")
    arguments = parser.parse_args()
    if not SAMPLE.is_dir():
        parser.error("the sample of real patches is not here")
    os.environ.update(NO_ALBUMENTATIONS_UPDATE="1", OMP_NUM_THREADS="1")
    data = link_patches([SAMPLE], arguments.out)
    claris("folds", "--data", data, "--out", arguments.out / "folds.csv", "--cache", arguments.out / "cache")
    claris("pack", "--data", data, "--cache", arguments.out / "cache")
    folds = read_folds(arguments.out / "folds.csv")
    todo = [
        (name, seed)
        for seed in arguments.seeds
        for name in arguments.only
        if not is_done(name, seed, folds, arguments.folds)
    ]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        jobs = [] if arguments.table else [
            pool.submit(run, name, seed, arguments.out, arguments.folds) for name, seed in todo
        ]  # fmt: skip
        for job in jobs:
            job.result()
    write_page(arguments.out)


if __name__ == "__main__":
    main()

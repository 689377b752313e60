"""Recipes from random weights on real patches: out-of-fold AUC over seeds, beside what each costs.

python -m benchmarks.recipes [--only NAME ...] [--seeds 0 1 2] [--folds 0 1 2 3 4] [--jobs 2] [--table]

What is done is kept in docs/recipes; the same command goes on. Seeds change weights, order and augmentation; the
folds stay, so that differences are paired.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm, t
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.patches import SAMPLE
from benchmarks.timing import ROOT
from claris_kaggle.config import TrainConfig
from claris_kaggle.folds import read_folds
from claris_kaggle.metrics import accuracy, auc
from claris_kaggle.model import create_model
from claris_kaggle.predictions import read_oof
from claris_kaggle.presets import PRESETS
from claris_kaggle.uncertainty import delong

KEPT, PAGE = ROOT / "docs" / "recipes", ROOT / "docs" / "recipes.md"
PLOT, VIEWS = KEPT / "differences.svg", KEPT / "views" / "views.json"
BASE, TWICE, FOLDS = "original", "original, twice", (0, 1, 2, 3, 4)


class Recipe(NamedTuple):
    """A preset and what is other than in it."""

    about: str
    preset: str = "original"
    changes: dict[str, Any] = {}

    @property
    def config(self) -> TrainConfig:
        """All its training options."""
        return TrainConfig(**{**PRESETS[self.preset], **self.changes, "preset": self.preset, "weights": "none"})

    @property
    def cost(self) -> float:
        """Operations for each training patch over all epochs, forward and backward, in 1e9 (two a multiply-add)."""
        config = self.config
        sides = [config.resolution_in(epoch) or config.crop for epoch in range(config.epochs)]
        return sum(sides.count(side) * one_image(config.model, config.stem, side) for side in set(sides))


@functools.cache
def one_image(name: str, stem: str, side: int) -> float:
    """Of one image of that side, forward and backward, in 1e9 floating-point operations."""
    model = create_model(name, stem=stem)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 3, side, side)).sum().backward()
    return float(counter.get_total_flops()) / 2 / 1e9


RECIPES = {
    "original": Recipe("the original's recipe"),
    "scratch": Recipe("the scratch preset", "scratch"),
    "original, twice": Recipe("the original's at twice the compute", "original", {"epochs": 12}),
    "scratch, twice": Recipe("the scratch preset at twice the compute", "scratch", {"epochs": 48}),
    # One change at a time, each at the compute of six epochs of the original.
    "original, D4": Recipe("the square's symmetries for flips and 20 degrees", "original", {"geometry": "d4"}),
    "original, one-cycle": Recipe("one-cycle to 1e-3", "original", {"schedule": "onecycle", "lr": 1e-3}),
    "original, cosine": Recipe("a cosine from 1e-3 on", "original", {"schedule": "cosine", "lr": 1e-3}),
    "original, decay": Recipe("decay of 0.05", "original", {"weight_decay": 0.05}),
    "original, average": Recipe("moving average of 0.99", "original", {"ema": 0.99}),
    "original, colour": Recipe("colour at 0.3", "original", {"color": 0.3}),
    "original, stain": Recipe("H&E stain at 0.05", "original", {"stain": 0.05}),
    "original, both colours": Recipe("colour at 0.3, stain at 0.05", "original", {"color": 0.3, "stain": 0.05}),
    "original, smoothing": Recipe("labels smoothed by 0.05", "original", {"label_smoothing": 0.05}),
    "original, even weights": Recipe("classes weigh the same", "original", {"class_weight": 1.0}),
    "original, batch 16": Recipe("16 patches a step", "original", {"batch_size": 16}),
    "original, half": Recipe("patches averaged down to 48", "original", {"epochs": 24, "resolution": 48}),
    "original, half then whole": Recipe("half of the compute at 48", "original", {"epochs": 15, "small_share": 0.8}),
    "original, centre 64": Recipe("the middle 64 pixels", "original", {"epochs": 13, "crop": 64, "shift": 8}),
    "original, centre 48": Recipe("the middle 48 pixels", "original", {"epochs": 24, "crop": 48, "shift": 4}),
    "original, unpooled": Recipe(
        "the middle 48 without the first pooling", "original", {"crop": 48, "shift": 4, "stem": "no-pool"}
    ),
    "original, p4m": Recipe("weights shared among the square's symmetries", "original", {"equivariance": "p4m"}),
    "original, mixup": Recipe("mixup of 0.4", "original", {"mixup": 0.4}),
    "original, cutmix": Recipe("half of the steps in other surroundings", "original", {"cutmix": 0.5}),
    "original, drop-path": Recipe("layers left out for a tenth", "original", {"drop_path": 0.1}),
    "scratch, p4m": Recipe("weights shared among the square's symmetries", "scratch", {"equivariance": "p4m"}),
    "scratch, shifted": Recipe(
        "the middle 88 at 44, moved by up to 4", "scratch", {"crop": 88, "shift": 4, "resolution": 44, "epochs": 28}
    ),
    "scratch, no average": Recipe("without the moving average", "scratch", {"ema": 0.0}),
    "scratch, stain": Recipe("H&E stain at 0.05 besides", "scratch", {"stain": 0.05}),
    "scratch, 1e-3": Recipe("one-cycle to 1e-3", "scratch", {"lr": 1e-3}),
}


class Unit(NamedTuple):
    """One recipe under one seed, its rows known by NaN for patches of folds that were left out."""

    name: str
    seed: int
    epochs: int
    probabilities: NDArray[np.float64]


def kept_at(name: str, seed: int) -> Path:
    """Where a unit's figures are kept."""
    return KEPT / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}.json"


def claris(*arguments: object) -> None:
    """Run the command, its talk on our stderr."""
    command = [sys.executable, "-m", "claris_kaggle", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def light_copy(out: Path) -> Path:
    """The sample's folder by links, with one test patch: only out-of-fold predictions are wanted."""
    folder = out / "data"
    header, first, *_ = (SAMPLE / "sample_submission.csv").read_text("utf-8").splitlines()
    links = ["train", "train_labels.csv", f"test/{first.split(',')[0]}.tif"]
    for name in links:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if not (folder / name).exists():
            (folder / name).symlink_to(SAMPLE.resolve() / name)
    (folder / "sample_submission.csv").write_text(f"{header}\n{first}\n", "utf-8")
    return folder


def run(name: str, seed: int, out: Path, folds: Sequence[int]) -> None:
    """Train and predict, or go on with it, and keep the probabilities."""
    recipe, kept = RECIPES[name], kept_at(name, seed)
    folder = out / kept.stem
    places = ["--data", out / "data", "--cache", out / "cache", "--run", folder]
    flags = [word for key, value in recipe.changes.items() for word in ("--" + key.replace("_", "-"), value)]
    precision = "bf16" if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else "fp32"
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
    KEPT.mkdir(parents=True, exist_ok=True)
    content = {
        "name": name,
        "seed": seed,
        "epochs": recipe.config.epochs,
        "precision": precision,
        "probabilities": values,
    }
    kept.write_text(json.dumps(content) + "\n", "utf-8")


def read_units() -> dict[str, list[Unit]]:
    """What was measured so far, by recipe."""
    found: dict[str, list[Unit]] = {}
    for path in sorted(KEPT.glob("*.json")):
        one = json.loads(path.read_text("utf-8"))
        unit = Unit(one["name"], one["seed"], one["epochs"], np.array(one["probabilities"], dtype=np.float64))
        found.setdefault(unit.name, []).append(unit)
    return {name: sorted(found[name], key=lambda unit: unit.seed) for name in RECIPES if name in found}


def difference(units: list[Unit], base: list[Unit], labels: NDArray[np.int8]) -> tuple[float, float, int]:
    """Mean over the common seeds of the difference of pooled AUC to the base, half its 95 % interval, and the seeds.

    Two things vary: which patches there are (DeLong's variance of the mean over seeds) and what a seed
    makes of them (the variance between seeds; Satterthwaite's degrees of freedom for the sum).
    """
    old = {unit.seed: unit for unit in base}
    pairs = [(unit, old[unit.seed]) for unit in units if unit.seed in old]
    if not pairs:
        return float("nan"), float("nan"), 0
    rows = np.all([np.isfinite(unit.probabilities) for pair in pairs for unit in pair], axis=0)
    columns = np.stack([unit.probabilities[rows] for pair in pairs for unit in pair], axis=1)
    aucs, covariance = delong(labels[rows], columns)
    count = len(pairs)
    signs = np.tile([1 / count, -1 / count], count)
    by_patch = float(signs @ covariance @ signs)
    by_seed = float(np.var(aucs[::2] - aucs[1::2], ddof=1)) / count if count > 1 else 0.0
    width = norm.ppf(0.975)
    if by_seed:
        width = t.ppf(0.975, (by_patch + by_seed) ** 2 / (by_seed**2 / (count - 1)))
    return float(signs @ aucs), float(width * np.sqrt(by_patch + by_seed)), count


def base_of(name: str) -> str:
    """The recipe that this one is compared with: the original's, at twice the compute where both have it."""
    return TWICE if name.endswith(", twice") and name != TWICE else BASE


def table(units: dict[str, list[Unit]], labels: NDArray[np.int8]) -> list[str]:
    """A row for each recipe that was measured."""
    lines = [
        "| recipe | what it is | epochs | cost | patches x seeds | OOF AUC | accuracy | AUC over the original (95 %) |",
        "| --- " * 8 + "|",
    ]
    for name, measured in units.items():
        rows = np.isfinite(measured[0].probabilities)
        aucs = [auc(labels[rows], unit.probabilities[rows].astype(np.float32)) for unit in measured]
        hits = [accuracy(labels[rows], unit.probabilities[rows].astype(np.float32)) for unit in measured]
        base = base_of(name)
        middle, half, count = difference(measured, units.get(base, []), labels)
        gain = f"{middle:+.4f} ({middle - half:+.4f} to {middle + half:+.4f})" if count and name != BASE else ""
        if gain and base != BASE:
            gain += f", over {base}"
        cells = (
            name, RECIPES[name].about, measured[0].epochs, f"{RECIPES[name].cost / RECIPES[BASE].cost:.2f}",
            f"{rows.sum():,} x {len(measured)}", f"{np.mean(aucs):.4f}", f"{np.mean(hits):.4f}", gain,
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def views_table() -> list[str]:
    """What `benchmarks.views` found, a row for each recipe."""
    figures = json.loads(VIEWS.read_text("utf-8")) if VIEWS.exists() else {}
    ways = [way for way in next(iter(figures.values()), {}) if way != "seeds"]
    lines = ["| recipe | seeds | " + " | ".join(ways) + " |", "| --- " * (2 + len(ways)) + "|"]
    for name, one in figures.items():
        lines.append(f"| {name} | {one['seeds']} | " + " | ".join(f"{one[way]:.4f}" for way in ways) + " |")
    return lines if figures else ["Not measured yet."]


def draw(units: dict[str, list[Unit]], labels: NDArray[np.int8]) -> None:
    """The differences with their intervals, as a picture."""
    import matplotlib
    from matplotlib.figure import Figure

    shown = [(name, *difference(units[name], units.get(base_of(name), []), labels)) for name in units if name != BASE]
    shown = [row for row in shown if row[3]][::-1]
    figure = Figure(figsize=(7.5, 1 + 0.3 * len(shown)), layout="constrained")
    axes = figure.add_subplot(xlabel="AUC over the original's recipe, 95 % interval")
    axes.errorbar(
        [row[1] for row in shown], range(len(shown)), xerr=[row[2] for row in shown], fmt="o", color="#0072b2"
    )
    axes.set_yticks(range(len(shown)), [row[0] for row in shown])
    axes.axvline(0, color="grey", linestyle=":")
    axes.spines[["top", "right"]].set_visible(False)
    with matplotlib.rc_context({"svg.hashsalt": "claris"}):
        figure.savefig(PLOT, metadata={"Date": None})


def write_page(out: Path) -> None:
    """Table and plot of what is there, among the notes."""
    units, labels = read_units(), read_folds(out / "folds.csv").labels
    text = (ROOT / "benchmarks" / "recipes-notes.md").read_text("utf-8")
    for mark, lines in (("{table}", table(units, labels)), ("{views}", views_table())):
        text = text.replace(mark, "\n".join(lines))
    PAGE.write_text(text, "utf-8")
    draw(units, labels)
    print(PAGE.relative_to(ROOT))


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
    data = light_copy(arguments.out)
    claris("folds", "--data", data, "--out", arguments.out / "folds.csv", "--cache", arguments.out / "cache")
    claris("pack", "--data", data, "--cache", arguments.out / "cache")
    todo = [(name, seed) for seed in arguments.seeds for name in arguments.only if not kept_at(name, seed).exists()]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        jobs = [] if arguments.table else [
            pool.submit(run, name, seed, arguments.out, arguments.folds) for name, seed in todo
        ]  # fmt: skip
        for job in jobs:
            job.result()
    write_page(arguments.out)


if __name__ == "__main__":
    main()

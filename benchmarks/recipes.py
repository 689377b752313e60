"""Recipes from random weights on real patches: five-fold OOF AUC over seeds, beside what each costs.

python -m benchmarks.recipes [--only NAME ...] [--seeds 0 1 2] [--out benchmark-runs]

What is done is kept in the out folder; the same command goes on. Seeds change weights, order and
augmentation; the folds stay, so that differences are paired.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.patches import SAMPLE
from benchmarks.timing import ROOT
from claris_kaggle.metrics import accuracy, auc
from claris_kaggle.model import create_model
from claris_kaggle.predictions import read_oof
from claris_kaggle.uncertainty import delong

KEPT, PAGE = ROOT / "docs" / "recipes", ROOT / "docs" / "recipes.md"
FIRST = "original"
ORIGINAL = ("--preset", "original")
SCRATCH = ("--preset", "scratch")


class Recipe(NamedTuple):
    """Flags of `claris train`, and the epochs that it gets for the compute of `budget` epochs of the original."""

    about: str
    flags: tuple[str, ...]
    budget: float = 6


RECIPES = {
    "original": Recipe("the original's", ORIGINAL),
    "original, D4": Recipe("D4 for flips and 20 degrees", (*ORIGINAL, "--geometry", "d4")),
    "original, one-cycle": Recipe("one-cycle to 1e-3", (*ORIGINAL, "--schedule", "onecycle", "--lr", "1e-3")),
    "original, colour": Recipe("colour at 0.3", (*ORIGINAL, "--color", "0.3")),
    "original, stain": Recipe("H&E stain at 0.05", (*ORIGINAL, "--stain", "0.05")),
    "original, smoothing": Recipe("labels smoothed by 0.05", (*ORIGINAL, "--label-smoothing", "0.05")),
    "original, average": Recipe("moving average of 0.99", (*ORIGINAL, "--ema", "0.99")),
    "original, centre": Recipe("centre of 64 and more epochs", (*ORIGINAL, "--crop", "64", "--geometry", "d4")),
    "scratch": Recipe("the scratch preset", SCRATCH),
    "scratch, average": Recipe("moving average of 0.99", (*SCRATCH, "--ema", "0.99")),
    "scratch, decay": Recipe(
        "3e-3, decay 0.05, average 0.99", (*SCRATCH, "--lr", "3e-3", "--weight-decay", "0.05", "--ema", "0.99")
    ),
    "scratch, centre 64": Recipe(
        "centre of 64 moved by 8, more epochs, average 0.99",
        (*SCRATCH, "--crop", "64", "--shift", "8", "--ema", "0.99"),
    ),
    "scratch, centre 48": Recipe(
        "centre of 48 moved by 4, more epochs, average 0.99",
        (*SCRATCH, "--crop", "48", "--shift", "4", "--ema", "0.99"),
    ),
    "scratch, centre 48 unpooled": Recipe(
        "centre of 48 without the first pooling, average 0.99",
        (*SCRATCH, "--crop", "48", "--shift", "4", "--stem", "no-pool", "--ema", "0.99"),
    ),
    "original, twice": Recipe("the original's at twice the compute", ORIGINAL, 12),
    "scratch, twice": Recipe("the scratch preset at twice the compute", SCRATCH, 12),
}


def value_of(flags: tuple[str, ...], name: str, default: str) -> str:
    """The value that the flags give."""
    return flags[flags.index(name) + 1] if name in flags else default


def giga_flops(flags: tuple[str, ...]) -> float:
    """Forward and backward of one image, in 1e9 floating-point operations (two a multiply-add)."""
    crop, stem = int(value_of(flags, "--crop", "96")), value_of(flags, "--stem", "pool")
    model = create_model("densenet121", stem=stem)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 3, crop, crop)).sum().backward()
    return float(counter.get_total_flops()) / 2 / 1e9


def claris(*arguments: object) -> None:
    """Run the command, its talk on our stderr."""
    command = [sys.executable, "-m", "claris_kaggle", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def run(name: str, seed: int, out: Path, epochs: int) -> None:
    """Train and predict, or go on with it, and keep the figures."""
    kept = KEPT / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}.json"
    if kept.exists():
        return
    folder = out / kept.stem
    places = ["--data", SAMPLE, "--cache", out / "cache", "--run", folder]
    precision = "bf16" if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else "fp32"
    claris(
        "train", *places, "--folds", out / "folds.csv", "--weights", "none", "--epochs", epochs, "--seed", seed,
        "--precision", precision, "--batch-size", 32, *RECIPES[name].flags,
    )  # fmt: skip
    claris("predict", *places)
    oof = read_oof(folder / "oof.csv")
    figures = {
        "name": name, "seed": seed, "epochs": epochs, "precision": precision,
        "probabilities": [round(float(value), 6) for value in oof.probabilities],
        "auc": auc(oof.labels, oof.probabilities), "accuracy": accuracy(oof.labels, oof.probabilities),
    }  # fmt: skip
    KEPT.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(figures) + "\n", "utf-8")


def table(labels: np.ndarray) -> list[str]:
    """A row for each recipe that is there: cost, AUC, accuracy, and the paired difference to the original."""
    found: dict[str, list[dict]] = {}
    for path in sorted(KEPT.glob("*.json")):
        figures = json.loads(path.read_text("utf-8"))
        found.setdefault(figures["name"], []).append(figures)
    lines = [
        "| recipe | what is other | epochs | cost | seeds | OOF AUC | accuracy | AUC over the original (95 %) |",
        "| --- " * 8 + "|",
    ]
    base = giga_flops(ORIGINAL) * RECIPES[FIRST].budget
    for name, recipe in RECIPES.items():
        rows = found.get(name, [])
        if not rows:
            continue
        cost = giga_flops(recipe.flags) * rows[0]["epochs"] / base
        cells = (
            name, recipe.about, rows[0]["epochs"], f"{cost:.2f}", len(rows),
            f"{np.mean([row['auc'] for row in rows]):.4f}", f"{np.mean([row['accuracy'] for row in rows]):.4f}",
            difference(rows, found.get(FIRST, []), labels) if name != FIRST else "",
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def difference(rows: list[dict], base: list[dict], labels: np.ndarray) -> str:
    """Mean over common seeds of the paired difference, by DeLong's variance of the mean placement."""
    seeds = sorted({row["seed"] for row in rows} & {row["seed"] for row in base})
    if not seeds:
        return ""
    pick = {row["seed"]: row["probabilities"] for row in rows}, {row["seed"]: row["probabilities"] for row in base}
    columns = np.array([part[seed] for part in pick for seed in seeds]).T
    aucs, covariance = delong(labels, columns)
    weights = np.concatenate([np.full(len(seeds), 1 / len(seeds)), np.full(len(seeds), -1 / len(seeds))])
    width = 1.96 * float(np.sqrt(weights @ covariance @ weights))
    middle = float(aucs @ weights)
    return f"{middle:+.4f} ({middle - width:+.4f} to {middle + width:+.4f})"


def main() -> None:
    """Run what is asked for and not yet done, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmark-runs")
    parser.add_argument("--table", action="store_true", help="only write the page")
    arguments = parser.parse_args()
    if not SAMPLE.is_dir():
        parser.error("the sample of real patches is not here")
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    folds = arguments.out / "folds.csv"
    claris("folds", "--data", SAMPLE, "--out", folds, "--cache", arguments.out / "cache")
    each = giga_flops(ORIGINAL)
    for seed in [] if arguments.table else arguments.seeds:
        for name in arguments.only:
            recipe = RECIPES[name]
            epochs = max(1, int(recipe.budget * each / giga_flops(recipe.flags)))
            run(name, seed, arguments.out, epochs)
            print("\n".join(table(read_labels_of(folds))), file=sys.stderr, flush=True)
    text = (ROOT / "benchmarks" / "recipes-notes.md").read_text("utf-8")
    PAGE.write_text(text.replace("{table}", "\n".join(table(read_labels_of(folds)))), "utf-8")
    print(PAGE.relative_to(ROOT))


def read_labels_of(folds: Path) -> np.ndarray:
    """The labels in the order of the sorted ids, as in every oof.csv."""
    from claris_kaggle.folds import read_folds

    return read_folds(folds).labels


if __name__ == "__main__":
    main()

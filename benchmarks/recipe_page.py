"""What `benchmarks.recipes` and `benchmarks.views` found, as table, plot and page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from benchmarks.recipe_rows import BASE, KEPT, RECIPES, TWICE
from benchmarks.timing import ROOT
from claris_kaggle.folds import read_folds
from claris_kaggle.metrics import accuracy, auc
from claris_kaggle.uncertainty import delong

PAGE = ROOT / "docs" / "recipes.md"
PLOT, VIEWS = KEPT / "differences.svg", KEPT / "views" / "views.json"


class Unit(NamedTuple):
    """One recipe under one seed, its rows known by NaN for patches of folds that were left out."""

    name: str
    seed: int
    epochs: int
    probabilities: NDArray[np.float64]


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

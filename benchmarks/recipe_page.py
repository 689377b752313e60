"""Tables, plot and page of the results of `benchmarks.recipes`, `benchmarks.views` and `benchmarks.pretrained`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from benchmarks.recipe_rows import BASE, KEPT, RECIPES, TWICE, Unit, read_unit
from benchmarks.timing import ROOT
from claris_kaggle.data.fold_file import read_folds
from claris_kaggle.evaluation.auc_intervals import measure
from claris_kaggle.evaluation.metrics import _accuracy, auc

PAGE = ROOT / "docs" / "recipes.md"
TRAINED_ON = 960  # patches of the sample in an epoch of one fold
PRETRAINED = {
    "{pretrained}": "pretrained-holdout.json",
    "{four}": "pretrained-holdout-4-views.json",
    "{longer}": "pretrained-longer.json",
}
PLOT, VIEWS = KEPT / "differences.svg", KEPT / "views" / "views.json"


def read_units() -> dict[str, list[Unit]]:
    """What was measured so far, by recipe, in order of seeds."""
    found: dict[str, list[Unit]] = {}
    for unit in filter(None, map(read_unit, sorted(KEPT.glob("*.json")))):
        found.setdefault(unit.name, []).append(unit)
    return {name: sorted(found[name], key=lambda unit: unit.seed) for name in RECIPES if name in found}


class Gains(NamedTuple):
    """One recipe's pooled AUC over its base's: a difference for each seed that both have, float64 [S].

    Attributes:
        variance: of the mean of the differences, by which patches there are (DeLong).
    """

    differences: NDArray[np.float64]
    variance: float


def gains(units: list[Unit], base: list[Unit], labels: NDArray[np.int8]) -> Gains:
    """The paired differences of the units to those of the same seed, over the patches that all have."""
    old = {unit.seed: unit for unit in base}
    pairs = [(unit, old[unit.seed]) for unit in units if unit.seed in old]
    if not pairs:
        return Gains(np.empty(0), float("nan"))
    rows = np.all([np.isfinite(unit.probabilities) for pair in pairs for unit in pair], axis=0)
    measured = [measure(labels[rows], unit.probabilities[rows]) for pair in pairs for unit in pair]
    aucs = np.array([one.value for one in measured])
    signs = np.tile([1 / len(pairs), -1 / len(pairs)], len(pairs))
    mean = signs @ np.stack([one.deviations for one in measured])
    return Gains(aucs[::2] - aucs[1::2], float(mean @ mean))


def all_gains(units: dict[str, list[Unit]], labels: NDArray[np.int8]) -> dict[str, Gains]:
    """Of every recipe that has a base."""
    found = {name: gains(units[name], units.get(base_of(name), []), labels) for name in units if name != BASE}
    return {name: one for name, one in found.items() if len(one.differences)}


def half_widths(found: dict[str, Gains]) -> dict[str, float]:
    """Half of the 95 % interval of each recipe's mean difference.

    Two things vary: which patches there are, and what a seed makes of them. A single seed says nothing about the
    latter, so that its variance is that of all recipes of several seeds together; the degrees of freedom of the sum
    are Satterthwaite's.
    """
    several = [one.differences for one in found.values() if len(one.differences) > 1]
    freedom = sum(len(values) - 1 for values in several)
    by_seed = sum(float(np.var(values)) * len(values) for values in several) / freedom if freedom else 0.0
    halves = {}
    for name, one in found.items():
        seeds = by_seed / len(one.differences)
        total = one.variance + seeds
        width = t.ppf(0.975, total**2 / (seeds**2 / freedom)) if seeds else norm.ppf(0.975)
        halves[name] = float(width * np.sqrt(total))
    return halves


def base_of(name: str) -> str:
    """The recipe that this one is compared with: the original's, at twice the compute where both have it."""
    return TWICE if name.endswith(", twice") and name != TWICE else BASE


def table(units: dict[str, list[Unit]], labels: NDArray[np.int8], found: dict[str, Gains]) -> list[str]:
    """A row for each recipe that was measured."""
    lines = [
        "| recipe | what it is | images | GFLOP an image | cost | patches x seeds | OOF AUC | accuracy "
        "| AUC difference to `original` (95 %) |",
        "| --- " * 9 + "|",
    ]
    halves = half_widths(found)
    for name, measured in units.items():
        rows = np.all([np.isfinite(unit.probabilities) for unit in measured], axis=0)
        aucs = [auc(labels[rows], unit.probabilities[rows].astype(np.float32)) for unit in measured]
        hits = [_accuracy(labels[rows], unit.probabilities[rows].astype(np.float32)) for unit in measured]
        gain = ""
        if name in found:
            middle, half = np.mean(found[name].differences), halves[name]
            gain = f"{middle:+.4f} ({middle - half:+.4f} to {middle + half:+.4f})"
            gain += "" if base_of(name) == BASE else f", over {base_of(name)}"
        recipe, epochs = RECIPES[name], RECIPES[name].config.epochs
        cells = (
            name, recipe.about, f"{epochs * TRAINED_ON:,}", f"{recipe.cost / epochs:.2f}",
            f"{recipe.cost / RECIPES[BASE].cost:.2f}",
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


def format_flags(options: Mapping[str, object]) -> str:
    """Return options as flags of the command line, in Markdown."""
    return "`" + " ".join(f"--{name.replace('_', '-')} {value}" for name, value in options.items()) + "`"


def pretrained_table(name: str) -> list[str]:
    """Return the options that most recipes of a summary of `benchmarks.pretrained` share, and a row for each recipe.

    A row has the options that differ. The best recipe comes first.
    """
    path = KEPT / "imagenet" / name
    if not path.exists():
        return ["Not measured yet."]
    rows = json.loads(path.read_text("utf-8"))
    options = {row["name"]: {"model": row["model"], "preset": row["preset"], **row["changes"]} for row in rows}
    fine_tuned = [one for one in options.values() if one["preset"] == "pretrained"]
    counts = Counter(option for one in fine_tuned for option in one.items())
    common = {name: value for (name, value), count in counts.items() if count > len(fine_tuned) / 2}
    lines = [
        f"Options, unless a row has others: {format_flags(common)}.", "",
        "| recipe | other options | AUC | accuracy | AUC difference to `before` (95 %) | seeds |", "| --- " * 6 + "|",
    ]  # fmt: skip
    for row in sorted(rows, key=lambda one: -np.mean(one["auc"])):
        own = {key: value for key, value in options[row["name"]].items() if common.get(key) != value}
        difference = row.get("AUC of the seeds' mean over the base's, 95 %")
        gain = "{:+.4f} ({:+.4f} to {:+.4f})".format(*difference) if difference else ""
        scores = f"{np.mean(row['auc']):.4f} | {np.mean(row['accuracy']):.4f}"
        lines.append(f"| {row['name']} | {format_flags(own) if own else ''} | {scores} | {gain} | {row['seeds']} |")
    return lines


def draw(found: dict[str, Gains]) -> None:
    """The differences with their intervals, as a picture."""
    import matplotlib
    from matplotlib.figure import Figure

    names, halves = list(found)[::-1], half_widths(found)
    figure = Figure(figsize=(7.5, 1 + 0.3 * len(names)), layout="constrained")
    axes = figure.add_subplot(xlabel="AUC over the original's recipe (scratch, twice: over original, twice), 95 %")
    middles = [np.mean(found[name].differences) for name in names]
    axes.errorbar(middles, range(len(names)), xerr=[halves[name] for name in names], fmt="o", color="#0072b2")
    axes.set_yticks(range(len(names)), names)
    axes.axvline(0, color="grey", linestyle=":")
    axes.spines[["top", "right"]].set_visible(False)
    with matplotlib.rc_context({"svg.hashsalt": "claris"}):
        figure.savefig(PLOT, metadata={"Date": None})


def write_page(out: Path) -> None:
    """Table and plot of what is there, among the notes."""
    units, labels = read_units(), read_folds(out / "folds.csv").labels
    text = (ROOT / "benchmarks" / "recipes-notes.md").read_text("utf-8")
    found = all_gains(units, labels)
    tables = {"{table}": table(units, labels, found), "{views}": views_table()}
    tables |= {place: pretrained_table(name) for place, name in PRETRAINED.items()}
    for place, lines in tables.items():
        text = text.replace(place, "\n".join(lines))
    PAGE.write_text(text, "utf-8")
    draw(found)
    print(PAGE.relative_to(ROOT))

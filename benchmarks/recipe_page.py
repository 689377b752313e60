"""Write `docs/recipes.md` from the results of `benchmarks.recipes`, `benchmarks.views` and `benchmarks.pretrained`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from benchmarks.recipe_rows import BASE, RECIPES, RESULTS, TWICE, Unit, read_unit
from benchmarks.timing import ROOT, format_markdown
from claris_kaggle.data.fold_file import read_folds
from claris_kaggle.evaluation.auc_intervals import measure
from claris_kaggle.evaluation.metrics import _accuracy, auc

PAGE = ROOT / "docs" / "recipes.md"
TRAIN_PATCHES = 960  # of the sample, per epoch and fold
PRETRAINED = {
    "{pretrained}": "pretrained-holdout.json",
    "{four}": "pretrained-holdout-4-views.json",
    "{longer}": "pretrained-longer.json",
    "{five}": "pretrained.json",
}
PLOT, VIEWS = RESULTS / "differences.svg", RESULTS / "views" / "views.json"


def read_units() -> dict[str, list[Unit]]:
    """Return the saved units of each recipe, sorted by seed."""
    units: dict[str, list[Unit]] = {}
    for unit in filter(None, map(read_unit, sorted(RESULTS.glob("*.json")))):
        units.setdefault(unit.name, []).append(unit)
    return {name: sorted(units[name], key=lambda unit: unit.seed) for name in RECIPES if name in units}


class PairedDifferences(NamedTuple):
    """The differences between the AUC of a recipe and that of its base recipe, over all patches.

    Attributes:
        differences: a difference for each seed that both have, float64 [S].
        variance: variance of their mean from the sampling of patches (DeLong).
    """

    differences: NDArray[np.float64]
    variance: float


def compare_to_base(units: list[Unit], base: list[Unit], labels: NDArray[np.int8]) -> PairedDifferences:
    """Compare each unit with the base unit of the same seed, on the patches that all of them predicted."""
    base_units = {unit.seed: unit for unit in base}
    pairs = [(unit, base_units[unit.seed]) for unit in units if unit.seed in base_units]
    if not pairs:
        return PairedDifferences(np.empty(0), float("nan"))
    rows = np.all([np.isfinite(unit.probabilities) for pair in pairs for unit in pair], axis=0)
    measured = [measure(labels[rows], unit.probabilities[rows]) for pair in pairs for unit in pair]
    aucs = np.array([one.value for one in measured])
    signs = np.tile([1 / len(pairs), -1 / len(pairs)], len(pairs))
    mean = signs @ np.stack([one.deviations for one in measured])
    return PairedDifferences(aucs[::2] - aucs[1::2], float(mean @ mean))


def compare_all(units: dict[str, list[Unit]], labels: NDArray[np.int8]) -> dict[str, PairedDifferences]:
    """Compare every recipe that has a seed in common with its base."""
    compared = {
        name: compare_to_base(units[name], units.get(find_base(name), []), labels) for name in units if name != BASE
    }
    return {name: one for name, one in compared.items() if len(one.differences)}


def compute_half_widths(compared: dict[str, PairedDifferences]) -> dict[str, float]:
    """Return half of the width of the 95 % interval of each recipe's mean difference.

    The variance has two parts: the sampling of patches and the seed. The variance between seeds is pooled over all
    recipes with several seeds, because one seed cannot show it. The degrees of freedom of the sum are Satterthwaite's.
    """
    repeated = [one.differences for one in compared.values() if len(one.differences) > 1]
    freedom = sum(len(values) - 1 for values in repeated)
    seed_variance = sum(float(np.var(values)) * len(values) for values in repeated) / freedom if freedom else 0.0
    half_widths = {}
    for name, one in compared.items():
        of_mean = seed_variance / len(one.differences)
        total = one.variance + of_mean
        quantile = t.ppf(0.975, total**2 / (of_mean**2 / freedom)) if of_mean else norm.ppf(0.975)
        half_widths[name] = float(quantile * np.sqrt(total))
    return half_widths


def find_base(name: str) -> str:
    """Return the recipe that this one is compared with: `original`, at twice the compute for recipes at twice."""
    return TWICE if name.endswith(", twice") and name != TWICE else BASE


def tabulate_recipes(
    units: dict[str, list[Unit]], labels: NDArray[np.int8], compared: dict[str, PairedDifferences]
) -> list[str]:
    """Return the table of all measured recipes."""
    columns = ["recipe", "what it is", "images", "GFLOP an image", "cost", "patches x seeds", "OOF AUC", "accuracy"]
    half_widths, rows = compute_half_widths(compared), []
    for name, measured in units.items():
        known = np.all([np.isfinite(unit.probabilities) for unit in measured], axis=0)
        predictions = [unit.probabilities[known].astype(np.float32) for unit in measured]
        scores = [np.mean([metric(labels[known], one) for one in predictions]) for metric in (auc, _accuracy)]
        difference = ""
        if name in compared:
            mean, half = np.mean(compared[name].differences), half_widths[name]
            difference = f"{mean:+.4f} ({mean - half:+.4f} to {mean + half:+.4f})"
            difference += "" if find_base(name) == BASE else f", over {find_base(name)}"
        recipe, epochs = RECIPES[name], RECIPES[name].config.epochs
        rows.append([
            name, recipe.description, f"{epochs * TRAIN_PATCHES:,}", f"{recipe.cost / epochs:.2f}",
            f"{recipe.cost / RECIPES[BASE].cost:.2f}",
            f"{known.sum():,} x {len(measured)}", *(f"{score:.4f}" for score in scores), difference,
        ])  # fmt: skip
    return format_markdown([*columns, "AUC difference to `original` (95 %)"], rows)


def tabulate_views() -> list[str]:
    """Return the table of the results of `benchmarks.views`."""
    results = json.loads(VIEWS.read_text("utf-8")) if VIEWS.exists() else {}
    if not results:
        return ["Not measured yet."]
    variants = [key for key in next(iter(results.values())) if key != "seeds"]
    rows = [[name, one["seeds"], *(f"{one[key]:.4f}" for key in variants)] for name, one in results.items()]
    return format_markdown(["recipe", "seeds", *variants], rows)


def format_flags(options: Mapping[str, object]) -> str:
    """Return options as flags of the command line, in Markdown."""
    return "`" + " ".join(f"--{name.replace('_', '-')} {value}" for name, value in options.items()) + "`"


def tabulate_pretrained(name: str) -> list[str]:
    """Return the table of a summary of `benchmarks.pretrained`, with the best recipe first.

    The options that most recipes share are above the table. A row has the options that differ from them.
    """
    path = RESULTS / "imagenet" / name
    if not path.exists():
        return ["Not measured yet."]
    results = json.loads(path.read_text("utf-8"))
    options = {one["name"]: {"model": one["model"], "preset": one["preset"], **one["changes"]} for one in results}
    fine_tuned = [one for one in options.values() if one["preset"] == "pretrained"]
    counts = Counter(option for one in fine_tuned for option in one.items())
    common = {name: value for (name, value), count in counts.items() if count > len(fine_tuned) / 2}
    columns = ["recipe", "other options", "AUC", "accuracy", "AUC difference to version 0.1.0 (95 %)", "seeds"]
    rows = []
    for one in sorted(results, key=lambda one: -np.mean(one["auc"])):
        other = {key: value for key, value in options[one["name"]].items() if common.get(key) != value}
        difference = one.get("AUC of the seeds' mean over the base's, 95 %")
        text = "{:+.4f} ({:+.4f} to {:+.4f})".format(*difference) if difference else ""
        scores = (f"{np.mean(one[metric]):.4f}" for metric in ("auc", "accuracy"))
        rows.append([one["name"], format_flags(other) if other else "", *scores, text, one["seeds"]])
    return [f"Options, unless a row has others: {format_flags(common)}.", "", *format_markdown(columns, rows)]


def plot_differences(compared: dict[str, PairedDifferences]) -> None:
    """Write the plot of the differences and their intervals."""
    import matplotlib
    from matplotlib.figure import Figure

    names, half_widths = list(compared)[::-1], compute_half_widths(compared)
    figure = Figure(figsize=(7.5, 1 + 0.3 * len(names)), layout="constrained")
    axes = figure.add_subplot(xlabel="AUC over the original's recipe (scratch, twice: over original, twice), 95 %")
    means = [np.mean(compared[name].differences) for name in names]
    axes.errorbar(means, range(len(names)), xerr=[half_widths[name] for name in names], fmt="o", color="#0072b2")
    axes.set_yticks(range(len(names)), names)
    axes.axvline(0, color="grey", linestyle=":")
    axes.spines[["top", "right"]].set_visible(False)
    with matplotlib.rc_context({"svg.hashsalt": "claris"}):
        figure.savefig(PLOT, metadata={"Date": None})


def write_page(out: Path) -> None:
    """Write the page and the plot from the notes and the saved results. `out` contains the fold file."""
    units, labels = read_units(), read_folds(out / "folds.csv").labels
    text = (ROOT / "benchmarks" / "recipes-notes.md").read_text("utf-8")
    compared = compare_all(units, labels)
    tables = {"{table}": tabulate_recipes(units, labels, compared), "{views}": tabulate_views()}
    tables |= {placeholder: tabulate_pretrained(name) for placeholder, name in PRETRAINED.items()}
    for placeholder, lines in tables.items():
        text = text.replace(placeholder, "\n".join(lines))
    PAGE.write_text(text, "utf-8")
    plot_differences(compared)
    print(PAGE.relative_to(ROOT))

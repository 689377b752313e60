"""What each way of combining runs is truly worth, on made-up runs whose truth is known; and how often intervals hold.

python -m benchmarks.ensembling [--seeds N]
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.simulation import Scores, coverage, draw_scores, to_probabilities
from benchmarks.timing import ROOT
from claris_kaggle import blending
from claris_kaggle.ensemble import choose
from claris_kaggle.metrics import auc
from claris_kaggle.predictions import Oof

PAGE = ROOT / "docs" / "ensembling.md"
FOLDS, UNSEEN = 5, 4000


class Setting(NamedTuple):
    """Runs to combine: how strong each is, what they share, and how many slides and patches there are."""

    name: str
    strengths: tuple[float, ...]
    shared: float
    slides: int
    patches: int
    effect: float = 0.3
    skew: tuple[float, ...] = ()


SETTINGS = (
    Setting("three equal runs", (2.0, 2.0, 2.0), 0.5, 60, 25),
    Setting("five equal runs, much alike", (2.2,) * 5, 0.85, 60, 25),
    Setting("one good run, two poor ones", (2.4, 0.8, 0.8), 0.3, 60, 25),
    Setting("one good run, four useless ones", (2.0, 0.0, 0.0, 0.0, 0.0), 0.2, 60, 25),
    Setting("a ladder of five", (1.2, 1.5, 1.8, 2.1, 2.4), 0.5, 60, 25),
    Setting("few patches, three equal runs", (1.5, 1.5, 1.5), 0.5, 20, 15),
    Setting("few patches, one good run of three", (2.0, 0.7, 0.7), 0.3, 20, 15),
    Setting("three equal runs on other scales", (2.0, 2.0, 2.0), 0.5, 60, 25, 0.3, (1.0, 4.0, 0.3)),
    Setting("many patches, a ladder of three", (1.8, 2.0, 2.2), 0.7, 200, 60),
)


def make(setting: Setting, seed: int) -> tuple[Scores, NDArray[np.float64], Scores, NDArray[np.float64]]:
    """OOF patches and unseen ones of the same runs, with their probabilities."""
    generator = np.random.default_rng([seed, SETTINGS.index(setting)])
    sets = []
    for slides in (setting.slides, max(2, UNSEEN // setting.patches)):
        scores = draw_scores(
            generator, slides=slides, patches=setting.patches, effect=setting.effect, strengths=setting.strengths,
            shared=setting.shared,
        )  # fmt: skip
        skew = np.array(setting.skew or (1.0,) * len(setting.strengths))
        sets += [scores, to_probabilities((scores.values - 1) * skew + 1).astype(np.float64)]
    return tuple(sets)  # type: ignore[return-value]


def gains(setting: Setting, seed: int) -> dict[str, float]:
    """For each method what it hands out scores on unseen patches, minus what the plain mean does."""
    known, columns, unseen, others = make(setting, seed)
    fold = known.slide % FOLDS
    values = {name: apply_to(name, known.labels, columns, others) for name in blending.METHODS}
    oof = Oof([str(row) for row in range(len(known.labels))], known.labels, fold, columns[:, 0].astype(np.float32))
    chosen, _ = choose(oof, columns, known.slides)
    scores = {name: auc(unseen.labels, value) for name, value in values.items()}
    scores["auto"] = scores[chosen]
    return {name: score - scores["mean"] for name, score in scores.items() if name != "mean"}


def apply_to(
    name: str, labels: NDArray[np.int8], columns: NDArray[np.float64], others: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The method fitted on all OOF rows and applied to unseen ones."""
    space = blending.METHODS[name].space
    return blending.fit(name, labels, blending.to_space(columns, space)).apply(blending.to_space(others, space))


def gain_table(seeds: int) -> list[str]:
    """A row for each setting: each method's mean gain with its standard error."""
    names = [*(name for name in blending.METHODS if name != "mean"), "auto"]
    lines = ["| runs | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
    worst = np.inf
    for setting in SETTINGS:
        rows = [gains(setting, seed) for seed in range(seeds)]
        cells = []
        for name in names:
            each = np.array([row[name] for row in rows])
            cells.append(f"{each.mean():+.4f} ± {each.std(ddof=1) / np.sqrt(seeds):.4f}")
        worst = min(worst, float(np.mean([row["auto"] for row in rows])))
        lines.append(f"| {setting.name} | " + " | ".join(cells) + " |")
        print(lines[-1], file=sys.stderr, flush=True)
    return [*lines, "", f"The worst of `auto`'s mean gains is {worst:+.5f}."]


def coverage_table(trials: int) -> list[str]:
    """How often 95 % intervals hold the truth."""
    lines = [
        "| slides | patches a slide | slide effect | AUC | interval holds | difference holds |",
        "| --- " * 6 + "|",
    ]
    for slides, patches, effect, level in (
        (100, 30, 0.0, 0.90), (216, 20, 0.0, 0.97), (216, 30, 0.4, 0.97), (216, 30, 0.7, 0.95), (80, 40, 0.7, 0.93),
        (40, 30, 0.7, 0.90),
    ):  # fmt: skip
        held = coverage(slides=slides, patches=patches, effect=effect, auc=level, trials=trials, seed=slides)
        cells = (
            slides,
            patches,
            effect,
            f"{held['truth']:.3f}",
            f"{held['interval']:.1%}",
            f"{held['comparison']:.1%}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def size_table() -> list[str]:
    """Seconds of each method, nested over five folds, at the competition's size and twenty runs."""
    import resource

    generator = np.random.default_rng(0)
    scores = draw_scores(generator, slides=216, patches=1040, effect=0.4, strengths=tuple(np.linspace(2.5, 3, 20)))
    rows = slice(0, 220_025)
    labels, fold, columns = scores.labels[rows], scores.slide[rows] % FOLDS, to_probabilities(scores.values[rows])
    lines = ["| method | seconds |", "| --- | --- |"]
    for name in blending.METHODS:
        began = time.perf_counter()
        blending.nested(name, labels, columns.astype(np.float64), fold)
        lines.append(f"| {name} | {time.perf_counter() - began:.1f} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [
        *lines,
        "",
        f"The most memory of the process: {peak:,.0f} MB, of which the table is {columns.size * 8e-6:.0f}.",
    ]


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--trials", type=int, default=800)
    arguments = parser.parse_args()
    template = (ROOT / "benchmarks" / "ensembling-notes.md").read_text("utf-8")
    parts = {
        "{gains}": gain_table(arguments.seeds),
        "{coverage}": coverage_table(arguments.trials),
        "{sizes}": size_table(),
    }
    for name, lines in parts.items():
        template = template.replace(name, "\n".join(lines))
    PAGE.write_text(
        template.replace("{seeds}", str(arguments.seeds)).replace("{trials}", str(arguments.trials)), "utf-8"
    )
    print(PAGE.relative_to(ROOT))


if __name__ == "__main__":
    main()

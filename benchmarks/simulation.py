"""Simulate patches of slides and runs with a known AUC, for the benchmarks of statistics and ensembles."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit

from claris_kaggle.core.paths import RunDir
from claris_kaggle.evaluation.auc_intervals import measure
from claris_kaggle.evaluation.predictions import Oof, write_run_oof, write_test


class Scores(NamedTuple):
    """Labels int8 [N], scores of the runs float64 [N, M], and slide numbers int64 [N]."""

    labels: NDArray[np.int8]
    values: NDArray[np.float64]
    slide: NDArray[np.int64]

    @property
    def slides(self) -> list[str]:
        """Return the name of the slide of each patch."""
        return [f"s{number}" for number in self.slide]


def simulate_scores(
    generator: np.random.Generator,
    *,
    slides: int,
    patches: int,
    effect: float,
    strengths: tuple[float, ...],
    shared: float = 0.5,
) -> Scores:
    """Return labels and scores of patches from slides with and without tumour.

    Args:
        generator: source of the random values.
        slides: number of slides.
        patches: mean number of patches per slide.
        effect: standard deviation of the random effect that all patches of a slide share; 0 for independent patches.
        strengths: distance between the class means of each run, in standard deviations of its noise.
        shared: share of the noise variance that all runs have in common.
    """
    sizes = generator.poisson(patches, slides) + 1
    slide = np.repeat(np.arange(slides), sizes)
    tumour = generator.random(slides) < 0.45
    tumour[:2], tumour[-2:] = True, False
    labels = ((generator.random(len(slide)) < 0.8) & tumour[slide]).astype(np.int8)
    common = np.sqrt(shared) * generator.normal(size=len(slide)) + effect * generator.normal(size=slides)[slide]
    own = np.sqrt(1 - shared) * generator.normal(size=(len(slide), len(strengths)))
    return Scores(labels, labels[:, None] * np.array(strengths) + common[:, None] + own, slide)


def to_probabilities(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return scores as float32 probabilities."""
    return np.asarray(expit(2 * (values - 1.0))).astype(np.float32)


def strength_for_auc(auc: float, effect: float) -> float:
    """Return the distance between the class means that gives this AUC for patches of different slides."""
    return float(np.sqrt(2 * (1 + effect**2)) * stats.norm.ppf(auc))


def measure_coverage(
    *, slides: int, patches: int, effect: float, auc: float, trials: int, seed: int
) -> dict[str, float]:
    """Return how often the interval of an AUC, and of the difference of two equally good runs, contains the true value.

    The true AUC is the mean over all trials. Without a slide effect, patches are treated as independent.
    """
    generator = np.random.default_rng(seed)
    strength = strength_for_auc(auc, effect)
    intervals, values, covered = [], [], 0
    for _ in range(trials):
        scores = simulate_scores(
            generator, slides=slides, patches=patches, effect=effect, strengths=(strength, strength)
        )
        slide_names = scores.slides if effect else None
        one, other = (measure(scores.labels, column, slide_names) for column in scores.values.T)
        values.append(one.value)
        intervals.append(one.estimate.interval)
        low, high = one.compare(other).interval
        covered += low <= 0 <= high
    truth = float(np.mean(values))
    interval = float(np.mean([low <= truth <= high for low, high in intervals]))
    return {"truth": truth, "interval": interval, "comparison": covered / trials}


def write_simulated_run(root: Path, oof: Oof, test_ids: list[str], generator: np.random.Generator) -> RunDir:
    """Write a run that contains only these OOF predictions and random test predictions."""
    run_dir = RunDir(root)
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    write_run_oof(run_dir.oof, oof)
    write_test(run_dir.test, test_ids, generator.random(len(test_ids)).astype(np.float32))
    return run_dir

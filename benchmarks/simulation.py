"""Made-up patches of slides with known truth, for the benchmarks of statistics and ensembles."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit

from claris_kaggle.evaluation.auc_intervals import measure


class Scores(NamedTuple):
    """Labels int8 [N], values float64 [N, M] of the runs, slide int64 [N]."""

    labels: NDArray[np.int8]
    values: NDArray[np.float64]
    slide: NDArray[np.int64]

    @property
    def slides(self) -> list[str]:
        """The slides' names."""
        return [f"s{number}" for number in self.slide]


def draw_scores(
    generator: np.random.Generator,
    *,
    slides: int,
    patches: int,
    effect: float,
    strengths: tuple[float, ...],
    shared: float = 0.5,
) -> Scores:
    """Patches of slides, of which some hold tumour, scored by runs.

    Args:
        slides, patches: slides, and patches a slide on average.
        effect: spread between slides of what all patches of a slide have in common; 0 is none.
        strengths: each run's distance between the classes, in units of its spread among patches.
        shared: share of that spread that all runs have in common.
    """
    sizes = generator.poisson(patches, slides) + 1
    slide = np.repeat(np.arange(slides), sizes)
    tumour = generator.random(slides) < 0.45
    tumour[:2], tumour[-2:] = True, False
    labels = ((generator.random(len(slide)) < 0.8) & tumour[slide]).astype(np.int8)
    in_common = np.sqrt(shared) * generator.normal(size=len(slide)) + effect * generator.normal(size=slides)[slide]
    own = np.sqrt(1 - shared) * generator.normal(size=(len(slide), len(strengths)))
    return Scores(labels, labels[:, None] * np.array(strengths) + in_common[:, None] + own, slide)


def to_probabilities(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Scores as probabilities, float32."""
    return np.asarray(expit(2 * (values - 1.0))).astype(np.float32)


def strength_of(auc: float, effect: float) -> float:
    """The distance between the classes that gives the AUC, for patches of different slides."""
    return float(np.sqrt(2 * (1 + effect**2)) * stats.norm.ppf(auc))


def coverage(*, slides: int, patches: int, effect: float, auc: float, trials: int, seed: int) -> dict[str, float]:
    """How often the interval of an AUC, and of the difference of two equally good runs, holds the truth.

    The truth is the mean over all trials. Patches are taken for independent where the effect is 0.
    """
    generator = np.random.default_rng(seed)
    strength = strength_of(auc, effect)
    ends, values, compared = [], [], 0
    for _ in range(trials):
        scores = draw_scores(generator, slides=slides, patches=patches, effect=effect, strengths=(strength, strength))
        known = scores.slides if effect else None
        one, other = (measure(scores.labels, column, known) for column in scores.values.T)
        values.append(one.value)
        ends.append(one.estimate.interval)
        low, high = one.compare(other).interval
        compared += low <= 0 <= high
    truth = float(np.mean(values))
    held = float(np.mean([low <= truth <= high for low, high in ends]))
    return {"truth": truth, "interval": held, "comparison": compared / trials}

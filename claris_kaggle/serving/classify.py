"""Benign or malignant: patches and larger images, by all folds and views of a run, with what speaks for it.

An image of 96 x 96 is one patch. A larger one is looked at through a sliding window of that size. Each window
speaks for its middle 32 x 32 pixels, as labels do, so the image is called malignant when one of its windows is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.core.console import Progress
from claris_kaggle.core.errors import ClarisError, UsageError, escape_unprintable
from claris_kaggle.data.arrays import THRESHOLD, Pixels
from claris_kaggle.data.patches import CENTRE, PATCH_SHAPE, SIZE
from claris_kaggle.evaluation.calibration import apply_temperature
from claris_kaggle.inference.evidence import Float32Array, centre_share
from claris_kaggle.inference.fold_models import EnsemblePrediction, FoldModels, predict_ensemble
from claris_kaggle.inference.forward import block_size
from claris_kaggle.inference.tta import require_views
from claris_kaggle.serving.images import _MAX_PIXELS, _crop_window, _read_image, _window_starts

NOTICE = "A research tool and no diagnosis."
# Patches of several files that are computed together.
_TOGETHER = 32
_MAX_WINDOWS = 100_000


@dataclass(frozen=True, kw_only=True)
class ClassifyJob:
    """How images are classified.

    Attributes:
        views: 1, 4 or 8 symmetries to average over.
        threshold: the probability from which on a patch is called malignant.
        stride: pixels from window to window in larger images; at 32 the windows' middles leave no gap.
        max_pixels: width times height of an image, at most.
    Raises:
        UsageError: a value is out of range.
    """

    views: int = 8
    threshold: float = THRESHOLD
    stride: int = CENTRE
    max_pixels: int = _MAX_PIXELS

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        require_views(self.views)
        if not 0 < self.threshold < 1:
            raise UsageError(f"--threshold is {self.threshold}", "a number between 0 and 1 is needed")
        if not 1 <= self.stride <= SIZE:
            raise UsageError(f"--stride is {self.stride}", f"1 to {SIZE} pixels are needed")
        if self.max_pixels < SIZE * SIZE:
            raise UsageError(f"--max-pixels is {self.max_pixels}", f"at least {SIZE * SIZE} are needed")


_DEFAULT_JOB = ClassifyJob()


@dataclass(frozen=True)
class _Heat:
    """What the windows of a larger image say.

    Attributes:
        tops, lefts: int64 [R] and [C], upper left corners of the windows' rows and columns, in pixels.
        probabilities: float32 [R, C] of label 1.
    """

    tops: NDArray[np.int64]
    lefts: NDArray[np.int64]
    probabilities: Float32Array

    def to_json(self) -> dict[str, Any]:
        """The three as lists."""
        return {name: value.tolist() for name, value in vars(self).items()}


@dataclass(frozen=True)
class Classification:
    """The answer about one image; of a larger one, about its window with the highest probability.

    Attributes:
        name: of the file, or what the caller calls it.
        pixels: the whole image, uint8 [H, W, 3].
        top, left: where in it the patch lies that the rest is about.
        probability: of label 1, the mean over folds and views.
        calibrated: the same with its log-odds divided by the run's temperature; None where that is not known.
        threshold: from where on it is malignant.
        fold_probabilities: of each fold number, the mean over the views.
        view_probabilities: of each view, the mean over the folds.
        log_odds: in nats, the mean over folds and views: `map.sum() + bias`.
        map: float32 [h, w] as in `Evidence`; None for a network without one.
        centre_share: the share of the map in the middle 32 x 32 pixels, 0..1; None without a map.
        heat: what all windows say; None for an image of one patch.
    """

    name: str
    pixels: Pixels
    top: int
    left: int
    probability: float
    calibrated: float | None
    threshold: float
    fold_probabilities: dict[int, float]
    view_probabilities: list[float]
    log_odds: float
    map: Float32Array | None
    bias: float
    centre_share: float | None
    heat: _Heat | None = None

    @property
    def verdict(self) -> str:
        """`malignant` from the threshold on, else `benign`."""
        return "malignant" if self.probability >= self.threshold else "benign"

    @property
    def patch(self) -> Pixels:
        """What the answer is about, uint8 [96, 96, 3]."""
        return _crop_window(self.pixels, self.top, self.left)

    @property
    def fold_range(self) -> tuple[float, float]:
        """The lowest and the highest fold."""
        return min(self.fold_probabilities.values()), max(self.fold_probabilities.values())

    @property
    def view_range(self) -> tuple[float, float]:
        """The lowest and the highest view."""
        return min(self.view_probabilities), max(self.view_probabilities)

    @property
    def malignant_windows(self) -> float | None:
        """The share of the windows that are malignant; None for an image of one patch."""
        return None if self.heat is None else float((self.heat.probabilities >= self.threshold).mean())

    def to_json(self) -> dict[str, Any]:
        """All but the pixels as plain values."""
        return {
            "name": self.name,
            "width": self.pixels.shape[1],
            "height": self.pixels.shape[0],
            "verdict": self.verdict,
            "probability": self.probability,
            "calibrated": self.calibrated,
            "threshold": self.threshold,
            "top": self.top,
            "left": self.left,
            "folds": {str(fold): value for fold, value in self.fold_probabilities.items()},
            "views": self.view_probabilities,
            "log_odds": self.log_odds,
            "bias": self.bias,
            "map": None if self.map is None else self.map.tolist(),
            "centre_share": self.centre_share,
            "windows": None if self.heat is None else {"malignant": self.malignant_windows, **self.heat.to_json()},
        }


def classify_image(
    trained: FoldModels,
    pixels: Pixels,
    name: str = "image",
    job: ClassifyJob = _DEFAULT_JOB,
    *,
    after: Callable[[int], None] | None = None,
) -> Classification:
    """Classify an image in memory.

    Args:
        trained: a run's folds or an export's, as `load_trained` gives.
        pixels: uint8 [H, W, 3] RGB of at least 96 x 96, as `images.decode_image` gives.
        name: for the answer and for messages.
        job: stride, views and limits.
        after: called with the number of windows that were done together, and what it raises ends the work; None is a
            bar on a terminal, or a line now and then.
    Raises:
        UsageError: the image is smaller or of another type, or has too many windows.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or min(pixels.shape[:2]) < SIZE:
        found = f"{name}: an array of {pixels.dtype} {list(pixels.shape)}"
        raise UsageError(found, f"uint8 [H, W, 3] of at least {SIZE} x {SIZE} is needed")
    if pixels.shape == PATCH_SHAPE:
        return _classify_patches(trained, [pixels], [name], job)[0]
    tops, lefts = (_window_starts(side, job.stride) for side in pixels.shape[:2])
    if len(tops) * len(lefts) > _MAX_WINDOWS:
        found = f"{name}: {len(tops) * len(lefts):,} windows at a stride of {job.stride}"
        raise UsageError(found, f"at most {_MAX_WINDOWS:,} are looked at", "Give a larger --stride")
    places = [(top, left) for top in tops.tolist() for left in lefts.tolist()]
    if after:
        probabilities = _predict_windows(trained, pixels, places, job.views, after)
    else:
        with Progress(name, len(places), "windows") as progress:
            probabilities = _predict_windows(trained, pixels, places, job.views, progress.update)
    heat = _Heat(tops, lefts, probabilities.reshape(len(tops), len(lefts)))
    place = places[int(heat.probabilities.argmax())]
    prediction = predict_ensemble(trained, _crop_window(pixels, *place)[None], views=job.views)
    return _make_classification(trained, prediction, 0, name, pixels, job, place, heat)


def _predict_windows(
    trained: FoldModels, pixels: Pixels, places: Sequence[tuple[int, int]], views: int, after: Callable[[int], None]
) -> Float32Array:
    """The probability of the window at each place, float32 [len(places)]."""
    device = next(next(iter(trained.models.values())).parameters()).device
    size, parts = block_size(device), []
    for begin in range(0, len(places), size):
        windows = np.stack([_crop_window(pixels, *place) for place in places[begin : begin + size]])
        parts.append(predict_ensemble(trained, windows, views=views).probabilities)
        after(len(windows))
    return np.concatenate(parts)


def _classify_patches(
    trained: FoldModels, patches: Sequence[Pixels], names: Sequence[str], job: ClassifyJob
) -> list[Classification]:
    """Classify patches of 96 x 96 together."""
    prediction = predict_ensemble(trained, np.stack(patches), views=job.views)
    pairs = enumerate(zip(names, patches, strict=True))
    return [_make_classification(trained, prediction, row, name, patch, job) for row, (name, patch) in pairs]


def classify_files(
    trained: FoldModels, paths: Sequence[Path], job: ClassifyJob = _DEFAULT_JOB
) -> Iterator[Classification | ClarisError]:
    """Classify the files in turn: for each its answer, or what is wrong with it.

    Patches that follow each other are computed together.

    Args:
        trained: a run's folds or an export's, as `load_trained` gives.
        paths: of TIFF, PNG or JPEG files.
        job: stride, views and limits.
    Returns:
        As many as there are paths, in their order.
    Raises:
        UsageError: another number of views; what is wrong with a file is not raised, but yielded.
    """
    waiting: list[tuple[str, Pixels]] = []
    found: list[Classification | ClarisError]

    def flush() -> list[Classification]:
        names, patches = [name for name, _ in waiting], [patch for _, patch in waiting]
        waiting.clear()
        return _classify_patches(trained, patches, names, job) if names else []

    for path in paths:
        try:
            pixels = _read_image(path, job.max_pixels)
            if pixels.shape == PATCH_SHAPE:
                waiting.append((escape_unprintable(path), pixels))
                found = []
            else:
                found = [classify_image(trained, pixels, escape_unprintable(path), job)]
        except ClarisError as error:
            found = [error]
        if found or len(waiting) == _TOGETHER:
            yield from [*flush(), *found]
    yield from flush()


def _make_classification(
    trained: FoldModels,
    prediction: EnsemblePrediction,
    row: int,
    name: str,
    pixels: Pixels,
    job: ClassifyJob,
    place: tuple[int, int] = (0, 0),
    heat: _Heat | None = None,
) -> Classification:
    """One row of an opinion as a classification."""
    probability, temperature = prediction.probabilities[row], trained.figure("temperature")
    parts = None if prediction.maps is None else prediction.maps[row]
    return Classification(
        name=name,
        pixels=pixels,
        top=place[0],
        left=place[1],
        probability=float(probability),
        calibrated=float(apply_temperature(probability, temperature)) if temperature else None,
        threshold=job.threshold,
        fold_probabilities=dict(zip(trained.models, prediction.fold_probabilities[:, row].tolist(), strict=True)),
        view_probabilities=prediction.view_probabilities[:, row].tolist(),
        log_odds=float(prediction.log_odds[row]),
        map=parts,
        bias=prediction.bias,
        centre_share=None if parts is None else float(centre_share(parts[None], trained.config.crop)[0]),
        heat=heat,
    )

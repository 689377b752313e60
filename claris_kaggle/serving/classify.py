"""Classify patches and larger images with all folds and views of a run, and compute evidence maps.

An image of 96 x 96 pixels is one patch. A larger image is classified with a sliding window of that size. As in the
labels, each window stands for its centre 32 x 32 pixels, so an image is malignant if any of its windows is.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from claris_kaggle.core.console import Progress
from claris_kaggle.core.errors import ClarisError, UsageError, escape_unprintable
from claris_kaggle.core.notebook import html_table
from claris_kaggle.data.arrays import THRESHOLD, Pixels
from claris_kaggle.data.patches import CENTRE, PATCH_SHAPE, SIZE
from claris_kaggle.evaluation.calibration import apply_temperature
from claris_kaggle.evaluation.resemblance import has_tissue
from claris_kaggle.inference.evidence import Float32Array, centre_share
from claris_kaggle.inference.fold_models import EnsemblePrediction, FoldModels, predict_ensemble
from claris_kaggle.inference.forward import block_size
from claris_kaggle.inference.tta import require_views
from claris_kaggle.reporting.pictures import jpeg_uri
from claris_kaggle.serving.images import _MAX_PIXELS, _crop_window, _read_image, _window_starts

NOTICE = "For research use only. Not for diagnosis."
_Part = TypeVar("_Part")
_Computed = TypeVar("_Computed")
FAST_STRIDE = 64  # of --fast; the centres of the windows then cover a quarter of the area
# The batch size for patches of several files.
_PATCH_BATCH_SIZE = 32
_MAX_WINDOWS = 100_000
# The largest share of windows that do not resemble the training patches, for an answer without doubt.
_MAX_DISSIMILAR_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class ClassifyJob:
    """Settings of a classification.

    Attributes:
        views: number of test-time augmentation views: 1, 4 or 8.
        threshold: patches with this probability or higher are malignant; between 0 and 1.
        stride: pixels between windows in larger images, 1 to 96. Up to 32, the centres of the windows have no gaps.
        max_pixels: the largest allowed width x height of an image, at least 96 x 96.
    Raises:
        UsageError: a value is out of range.
    """

    views: int = 8
    threshold: float = THRESHOLD
    stride: int = CENTRE
    max_pixels: int = _MAX_PIXELS

    def __post_init__(self) -> None:
        """Validate all fields."""
        require_views(self.views)
        if not 0 < self.threshold < 1:
            raise UsageError(f"--threshold is {self.threshold}", "expected a number between 0 and 1")
        if not 1 <= self.stride <= SIZE:
            raise UsageError(f"--stride is {self.stride}", f"expected 1 to {SIZE} pixels")
        if self.max_pixels < SIZE * SIZE:
            raise UsageError(f"--max-pixels is {self.max_pixels}", f"expected at least {SIZE * SIZE}")


_DEFAULT_JOB = ClassifyJob()


@dataclass(frozen=True)
class _Heat:
    """The probabilities of all windows of a larger image, and their comparison with the training patches.

    Attributes:
        tops: int64 [R], the top edges of the rows of windows, in pixels.
        lefts: int64 [C], the left edges of the columns of windows, in pixels.
        probabilities: float32 [R, C], of label 1.
        dissimilar: number of windows with tissue that do not resemble the training patches; None if their statistics
            are unknown.
    """

    tops: NDArray[np.int64]
    lefts: NDArray[np.int64]
    probabilities: Float32Array
    dissimilar: int | None

    @property
    def reasons(self) -> list[str]:
        """The reasons to doubt the prediction."""
        number = self.probabilities.size
        if self.dissimilar is None or self.dissimilar <= _MAX_DISSIMILAR_SHARE * number:
            return []
        return [f"{self.dissimilar:,} of {number:,} windows do not resemble the training patches"]

    def to_json(self) -> dict[str, object]:
        """Return the fields as JSON values, and the number of windows."""
        return {
            "number": self.probabilities.size,
            "dissimilar": self.dissimilar,
            "tops": self.tops.tolist(),
            "lefts": self.lefts.tolist(),
            "probabilities": self.probabilities.tolist(),
        }


@dataclass(frozen=True)
class _Resemblance:
    """Comparison of a patch with the training patches.

    Attributes:
        tissue: False if the patch is only background.
        distance: distance of its colour and texture from the training patches; None if their statistics are unknown.
        limit: the largest distance of a patch that resembles them; None if it is unknown.
    """

    tissue: bool
    distance: float | None
    limit: float | None

    @property
    def reasons(self) -> list[str]:
        """The reasons to doubt the prediction."""
        if not self.tissue:
            return ["no tissue: the patch is only background"]
        if self.distance is None or self.limit is None or self.distance <= self.limit:
            return []
        return [
            "the patch does not resemble the training patches in colour and texture "
            f"(distance {self.distance:.1f}, limit {self.limit:.1f})"
        ]


def _compare_patch(trained: FoldModels, patch: Pixels) -> _Resemblance:
    """Compare a patch, uint8 [96, 96, 3], with the training patches."""
    statistics = trained.statistics
    distance = None if statistics is None else float(statistics.distances(patch[None])[0])
    return _Resemblance(bool(has_tissue(patch[None])[0]), distance, None if statistics is None else statistics.limit)


def _count_dissimilar(trained: FoldModels, windows: Pixels) -> int:
    """Return how many windows, uint8 [N, 96, 96, 3], have tissue and do not resemble the training patches."""
    if trained.statistics is None:
        return 0
    far = trained.statistics.distances(windows) > trained.statistics.limit
    return int(has_tissue(windows[far]).sum())


@dataclass(frozen=True)
class Classification:
    """The classification of one image. For a larger image, it is about the window with the highest probability.

    Attributes:
        name: name of the file, or the name that the caller passed.
        pixels: the whole image, uint8 [H, W, 3].
        top, left: position of the classified patch in the image, in pixels.
        probability: probability of label 1, the mean over folds and views.
        calibrated: the probability with its log-odds divided by the run's temperature; None if that is unknown.
        threshold: the patch is malignant from this probability on.
        fold_probabilities: the mean over the views, by fold number.
        view_probabilities: the mean over the folds, one per view.
        log_odds: in nats, the mean over folds and views. With a map it is `map.sum() + bias`.
        map: evidence map, float32 [h, w], as in `Evidence`; None if the network does not support it.
        bias: the part of the log-odds that is the same for every patch, in nats, as in `Evidence`; 0 without a map.
        centre_share: share of the map in the centre 32 x 32 pixels, 0..1; None without a map.
        heat: the probabilities of all windows and their comparison with the training patches; None for an image of one
            patch.
        resemblance: comparison of the classified patch with the training patches.
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
    resemblance: _Resemblance | None = None

    @property
    def verdict(self) -> str:
        """The string `malignant` if the probability reaches the threshold, else `benign`."""
        return "malignant" if self.probability >= self.threshold else "benign"

    @property
    def answer(self) -> str:
        """The string `uncertain` if there is a reason for doubt, else the verdict."""
        return "uncertain" if self.reasons else self.verdict

    @property
    def reasons(self) -> list[str]:
        """The reasons for doubt, as sentences without a full stop; empty if there is none."""
        parts = {"fold": list(self.fold_probabilities.values()), "view": self.view_probabilities}
        found = [reason for part in (self.resemblance, self.heat) if part is not None for reason in part.reasons]
        return [*found, *(text for unit, values in parts.items() if (text := self._describe_split(unit, values)))]

    def _describe_split(self, unit: str, values: Sequence[float]) -> str:
        """Return a sentence about values on both sides of the threshold; empty if all are on one side."""
        above = sum(value >= self.threshold for value in values)
        if above in (0, len(values)):
            return ""
        return (
            f"{above} of {len(values)} {unit}s say malignant, the others benign ({min(values):.3f} to "
            f"{max(values):.3f}, threshold {self.threshold:.3f})"
        )

    @property
    def patch(self) -> Pixels:
        """The classified patch, uint8 [96, 96, 3]."""
        return _crop_window(self.pixels, self.top, self.left)

    @property
    def fold_range(self) -> tuple[float, float] | None:
        """The lowest and the highest probability of a fold; None with one fold."""
        return _find_range(list(self.fold_probabilities.values()))

    @property
    def view_range(self) -> tuple[float, float] | None:
        """The lowest and the highest probability of a view; None with one view."""
        return _find_range(self.view_probabilities)

    @property
    def malignant_windows(self) -> float | None:
        """The share of malignant windows, 0..1; None for an image of one patch."""
        return None if self.heat is None else float((self.heat.probabilities >= self.threshold).mean())

    def _repr_html_(self) -> str:
        """Return the patch and its answer as HTML for notebooks."""
        rows: dict[str, list[object]] = {
            "answer": [self.answer],
            "probability of malignant": [self.probability],
            "reasons": ["; ".join(self.reasons) or "-"],
        }
        return f'<img src="{jpeg_uri(self.patch)}" alt="the classified patch" width="192">{html_table(rows)}'

    def to_json(self) -> dict[str, object]:
        """Return everything except the pixels as JSON values."""
        return {
            "name": self.name,
            "width": self.pixels.shape[1],
            "height": self.pixels.shape[0],
            "verdict": self.verdict,
            "answer": self.answer,
            "reasons": self.reasons,
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
            "resemblance": None if self.resemblance is None else vars(self.resemblance),
            "windows": None if self.heat is None else {"malignant": self.malignant_windows, **self.heat.to_json()},
        }


def _find_range(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the lowest and the highest value; None for a single value."""
    return (min(values), max(values)) if len(values) > 1 else None


def explain_missing_range(folds: int, views: int) -> str:
    """Return why the results have no range over folds or views, as a sentence without a full stop; empty if they have.

    >>> explain_missing_range(5, 1), explain_missing_range(1, 1), explain_missing_range(5, 8)
    ('only one view, so there is no range over views (-)', 'only one fold and one view, so there is no range (-)', '')
    """
    single = [unit for unit, number in (("fold", folds), ("view", views)) if number == 1]
    over = f" over {single[0]}s" if len(single) == 1 else ""
    return f"only one {' and one '.join(single)}, so there is no range{over} (-)" if single else ""


def classify_image(
    trained: FoldModels,
    pixels: Pixels,
    name: str = "image",
    job: ClassifyJob = _DEFAULT_JOB,
    *,
    on_batch: Callable[[int], None] | None = None,
) -> Classification:
    """Classify an image in memory and return the result.

    Args:
        trained: the folds of a run or an export, from `load_trained`.
        pixels: uint8 [H, W, 3] RGB of at least 96 x 96, as from `images.decode_image`.
        name: name of the image, for the result and for messages.
        job: views, threshold, stride and limits.
        on_batch: called after each batch of windows with the size of the batch. An exception from it stops the
            classification. None shows a progress bar.
    Raises:
        UsageError: the image is too small, has a wrong shape or dtype, or has too many windows.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or min(pixels.shape[:2]) < SIZE:
        found = f"{name}: an array of {pixels.dtype} {list(pixels.shape)}"
        raise UsageError(found, f"expected uint8 [H, W, 3] of at least {SIZE} x {SIZE}")
    if pixels.shape == PATCH_SHAPE:
        return _classify_patches(trained, [pixels], [name], job)[0]
    if (windows := _count_windows(pixels, job.stride)) > _MAX_WINDOWS:
        found = f"{name}: {windows:,} windows with a stride of {job.stride}"
        raise UsageError(found, f"at most {_MAX_WINDOWS:,} are allowed", "Give a larger --stride")
    tops, lefts = (_window_starts(side, job.stride) for side in pixels.shape[:2])
    places = [(top, left) for top in tops.tolist() for left in lefts.tolist()]
    if on_batch:
        probabilities, dissimilar = _predict_windows(trained, pixels, places, job.views, on_batch)
    else:
        with Progress(name, len(places), "windows") as progress:
            probabilities, dissimilar = _predict_windows(trained, pixels, places, job.views, progress.update)
    heat = _Heat(tops, lefts, probabilities.reshape(len(tops), len(lefts)), dissimilar if trained.statistics else None)
    place = places[int(heat.probabilities.argmax())]
    prediction = predict_ensemble(trained, _crop_window(pixels, *place)[None], views=job.views)
    return _make_classification(trained, prediction, 0, name, pixels, job, place, heat)


def _count_windows(pixels: Pixels, stride: int) -> int:
    """Return the number of windows of an image, uint8 [H, W, 3]; 1 for a patch."""
    return math.prod(len(_window_starts(side, stride)) for side in pixels.shape[:2])


def _predict_windows(
    trained: FoldModels, pixels: Pixels, places: Sequence[tuple[int, int]], views: int, on_batch: Callable[[int], None]
) -> tuple[Float32Array, int]:
    """Return the probability of the window at each (top, left) in `places`, and the number of dissimilar windows.

    On a CPU each thread computes its own blocks, because threads that share one operation wait for each other.
    """
    device = next(next(iter(trained.models.values())).parameters()).device
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    size = min(block_size(device), -(-len(places) // threads))
    blocks = [places[begin : begin + size] for begin in range(0, len(places), size)]

    def predict(block: Sequence[tuple[int, int]]) -> tuple[Float32Array, int]:
        windows = np.stack([_crop_window(pixels, *place) for place in block])
        return predict_ensemble(trained, windows, views=views).probabilities, _count_dissimilar(trained, windows)

    parts, dissimilar = [], 0
    with contextlib.closing(_in_threads(predict, blocks, threads)) as results:
        for part, number in results:
            parts.append(part)
            dissimilar += number
            on_batch(len(part))
    return np.concatenate(parts), dissimilar


def _in_threads(
    work: Callable[[_Part], _Computed], items: Sequence[_Part], threads: int
) -> Generator[_Computed, None, None]:
    """Yield the result of `work` for each item in order, computed by threads that use one processor each.

    Closing the iterator cancels the items that have not started, and restores the number of threads of torch.
    """
    if threads == 1:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(threads, "windows", torch.set_num_threads, (1,))
    try:
        yield from (turn.result() for turn in [pool.submit(work, item) for item in items])
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # torch gives the last setting to new threads


def _classify_patches(
    trained: FoldModels, patches: Sequence[Pixels], names: Sequence[str], job: ClassifyJob
) -> list[Classification]:
    """Classify patches of 96 x 96 pixels in one batch."""
    prediction = predict_ensemble(trained, np.stack(patches), views=job.views)
    pairs = enumerate(zip(names, patches, strict=True))
    return [_make_classification(trained, prediction, row, name, patch, job) for row, (name, patch) in pairs]


def classify_files(
    trained: FoldModels, paths: Sequence[Path | str], job: ClassifyJob = _DEFAULT_JOB
) -> Iterator[Classification | ClarisError]:
    """Classify files one after the other. Yields a result or an error for each.

    Consecutive patches are computed in one batch. An error of a file is yielded, not raised.

    Args:
        trained: the folds of a run or an export, from `load_trained`.
        paths: TIFF, PNG or JPEG files.
        job: views, threshold, stride and limits.
    Returns:
        An iterator with one item per path, in the order of `paths`.
    Raises:
        UsageError: invalid number of views.
    """
    waiting: list[tuple[str, Pixels]] = []
    found: list[Classification | ClarisError]

    def flush() -> list[Classification]:
        names, patches = [name for name, _ in waiting], [patch for _, patch in waiting]
        waiting.clear()
        return _classify_patches(trained, patches, names, job) if names else []

    for path in map(Path, paths):
        try:
            pixels = _read_image(path, job.max_pixels)
            if pixels.shape == PATCH_SHAPE:
                waiting.append((escape_unprintable(path), pixels))
                found = []
            else:
                found = [classify_image(trained, pixels, escape_unprintable(path), job)]
        except ClarisError as error:
            found = [error]
        if found or len(waiting) == _PATCH_BATCH_SIZE:
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
    """Return row `row` of a batch prediction as a classification."""
    probability, temperature = prediction.probabilities[row], trained.metric("temperature")
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
        resemblance=_compare_patch(trained, _crop_window(pixels, *place)),
    )

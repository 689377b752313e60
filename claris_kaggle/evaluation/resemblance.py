"""Statistics of the colour and texture of a run's patches, to recognise images that do not resemble them.

The distance of a patch is the Mahalanobis distance of its features from the mean of the training patches. The limit is
the 99.5 % quantile of their distances. The share of a fold's patches beyond the limit of the other folds estimates the
rate of false alarms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.core.errors import DataError
from claris_kaggle.data.arrays import Columns, Pixels

_FORMAT, _QUANTILE = 1, 0.995
_BLOCK, _CELL = 64, 8
_FEATURES = (
    *(f"log {what} of {colour}" for what in ("mean", "deviation") for colour in ("red", "green", "blue")),
    "log gradient",
    "log gradient of 8 x 8 means",
    *(f"log deviation of {colour} less grey" for colour in ("red", "green", "blue")),
)
# Keeps logarithms finite, in optical density. A pixel with more optical density than _TISSUE_DENSITY is tissue.
_MIN_DENSITY, _TISSUE_DENSITY, _MIN_TISSUE_SHARE = 0.01, 0.05, 0.01
_RIDGE = 1e-6
# The optical density of each value of a channel: 0 for white, 2.4 for black.
_DENSITIES = -np.log10((np.arange(256, dtype=np.float32) + 1) / 256)


@dataclass(frozen=True, kw_only=True)
class PatchStatistics:
    """The colour and texture of the patches of a run, in optical density.

    Attributes:
        patches: number of patches.
        mean: float64 [F], mean of the features.
        precision: float64 [F, F], inverse of their covariance.
        limit: a patch with a larger distance does not resemble the training patches.
        held_out_rate: share of the patches of each fold beyond the limit of the other folds, 0..1.
    """

    patches: int
    mean: Columns
    precision: Columns
    limit: float
    held_out_rate: float

    @classmethod
    def fit(cls, pixels: Pixels, fold: NDArray[np.int64]) -> Self:
        """Return the statistics of the patches, uint8 [N, S, S, 3] with N above 1, and their folds, int64 [N]."""
        features = _features(pixels)
        exceeding = 0
        for number in np.unique(fold):
            in_fold = fold == number
            if in_fold.sum() <= len(fold) - 2:
                mean, precision, limit = _fit_normal(features[~in_fold])
                exceeding += int((_distances(features[in_fold], mean, precision) > limit).sum())
        mean, precision, limit = _fit_normal(features)
        return cls(
            patches=len(pixels), mean=mean, precision=precision, limit=limit, held_out_rate=exceeding / len(pixels)
        )

    def distances(self, pixels: Pixels) -> Columns:
        """Return the distance of each patch, uint8 [N, S, S, 3], from the training patches: float64 [N]."""
        return _distances(_features(pixels), self.mean, self.precision)

    def to_json(self) -> dict[str, object]:
        """Return all fields as JSON values."""
        numbers = {"mean": self.mean.tolist(), "precision": self.precision.tolist()}
        about = {"format": _FORMAT, "features": list(_FEATURES), "quantile": _QUANTILE}
        return {**about, **vars(self), **numbers}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], source: object) -> Self:
        """Return the statistics that `to_json` wrote.

        Raises:
            DataError: the content has another format, or is damaged.
        """
        try:
            mean, precision = (np.asarray(content[name], dtype=np.float64) for name in ("mean", "precision"))
            size = len(_FEATURES)
            if content["format"] != _FORMAT or mean.shape != (size,) or precision.shape != (size, size):
                raise ValueError
            rate, limit = float(content["held_out_rate"]), float(content["limit"])
            return cls(patches=int(content["patches"]), mean=mean, precision=precision, limit=limit, held_out_rate=rate)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{source}: damaged or of another format", "", "Remove it, then run claris predict"
            ) from error


def has_tissue(pixels: Pixels) -> NDArray[np.bool_]:
    """Return False for each patch, uint8 [N, S, S, 3], with less than 1 % of pixels darker than the background."""
    return (_channel_densities(pixels).mean(axis=1) > _TISSUE_DENSITY).mean(axis=(1, 2)) >= _MIN_TISSUE_SHARE


def _channel_densities(pixels: Pixels) -> NDArray[np.float32]:
    """Return the optical density of each pixel, float32 [N, 3, S, S]: sums over a channel at the end are slow."""
    return _DENSITIES[np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))]


def _features(pixels: Pixels) -> Columns:
    """Return the features of each patch, float64 [N, F]. They are the same for all eight views of a patch."""
    return np.concatenate([_features_of_block(pixels[i : i + _BLOCK]) for i in range(0, len(pixels), _BLOCK)])


def _features_of_block(pixels: Pixels) -> Columns:
    """Return the features of a few patches."""
    density = _channel_densities(pixels)
    grey = density.mean(axis=1)
    side = grey.shape[1] // _CELL
    block_means = grey.reshape(len(grey), side, _CELL, side, _CELL).mean(axis=(2, 4))
    color_differences = density - grey[:, None]
    values = (
        density.mean(axis=(2, 3)), density.std(axis=(2, 3)), _gradient(grey)[:, None], _gradient(block_means)[:, None],
        color_differences.std(axis=(2, 3)),
    )  # fmt: skip
    return np.log(np.concatenate(values, axis=1).astype(np.float64) + _MIN_DENSITY)


def _gradient(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean absolute difference of neighbours in each image, [N, H, W] to [N]."""
    total = sum(np.abs(np.diff(grey, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2))
    return np.asarray(total, dtype=np.float32)


def _fit_normal(features: Columns) -> tuple[Columns, Columns, float]:
    """Return mean, inverse covariance, and the quantile of the distances."""
    mean: Columns = features.mean(axis=0)
    covariance = np.cov(features.T) + _RIDGE * np.eye(features.shape[1])
    precision: Columns = np.linalg.inv(covariance).astype(np.float64)
    return mean, precision, float(np.quantile(_distances(features, mean, precision), _QUANTILE))


def _distances(features: Columns, mean: Columns, precision: Columns) -> Columns:
    """Return the Mahalanobis distance of each row."""
    centred = features - mean
    return np.sqrt(np.einsum("nf,fg,ng->n", centred, precision, centred))

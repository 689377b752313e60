"""Show errors and uncertain cases of a run as images with evidence maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.errors import ClarisError, DataError, DiskError
from claris_kaggle.core.files import read_json
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data.arrays import THRESHOLD, Pixels
from claris_kaggle.data.pack import open_pack, pack_folder, read_verified_patch
from claris_kaggle.data.patches import SIZE, patch_id
from claris_kaggle.evaluation.predictions import Oof
from claris_kaggle.reporting.pictures import _BENIGN_COLOR, _MALIGNANT_COLOR, _png_uri

_SHOWN_PATCHES = 6
_VIEWS = 8
_NOTHING_SHOWN = "No views and no map"
# Opacity of a map where its evidence is strongest. The grey patch shows through the rest.
_MAP_OPACITY = 0.8
_Reader = Callable[[Sequence[str]], Pixels]


@dataclass(frozen=True)
class _Specimen:
    """One patch of a run.

    Attributes:
        id, label, fold, probability: as in the OOF predictions.
        slide: id of the slide, or empty if unknown.
        picture: the patch as a PNG data URI, or empty.
        map: the evidence map as a transparent PNG data URI over the central `crop` x `crop` pixels, or empty.
        crop: side of the square that the network sees, in pixels.
        views: probability of each of the eight views; empty without weights.
        centre: share of the evidence map in the centre 32 x 32 pixels, 0..1; None without a map.
        strongest: largest absolute value of a cell of the map, in nats; None without a map.
    """

    id: str
    label: int
    fold: int
    probability: float
    slide: str
    picture: str = ""
    map: str = ""
    crop: int = SIZE
    views: tuple[float, ...] = ()
    centre: float | None = None
    strongest: float | None = None

    @property
    def called(self) -> int:
        """The predicted label."""
        return int(self.probability >= THRESHOLD)

    @property
    def agreeing(self) -> int:
        """The number of views that predict the same label."""
        return sum((value >= THRESHOLD) == bool(self.called) for value in self.views)


def _confident_errors(oof: Oof) -> list[int]:
    """Return the misclassified rows at a threshold of 0.5, most confident first."""
    wrong = np.flatnonzero((oof.probabilities >= THRESHOLD) != (oof.labels == 1))
    return _nearest_first(-np.abs(oof.probabilities[wrong] - THRESHOLD), wrong)


def _least_certain(oof: Oof) -> list[int]:
    """Return the rows with a probability closest to 0.5."""
    return _nearest_first(np.abs(oof.probabilities - THRESHOLD), np.arange(len(oof.ids)))


def _nearest_first(distance: NDArray[np.floating], rows: NDArray[np.int64]) -> list[int]:
    """Return the `_SHOWN_PATCHES` rows with the smallest distances. Ties keep the order of the ids."""
    return [int(row) for row in rows[np.argsort(distance, kind="stable")[:_SHOWN_PATCHES]]]


def _make_reader(ids: Sequence[str], data: DataDir | None, cache: Path | None) -> _Reader | None:
    """Return a function that reads the verified pixels of ids, from the cache or else from the TIFF files.

    Args:
        ids: the ids of all training patches, which identify the packed patches in the cache.
        data: the competition's folder, or None.
        cache: the cache folder, or None.
    Returns:
        A function from ids to uint8 [N, 96, 96, 3], or None if there is no data and no cache.
    Raises:
        DataError: the cache cannot be used, and there is no data folder.
        DiskError: the cache cannot be read, and there is no data folder.
    """
    if cache is not None:
        try:
            pack = open_pack(pack_folder(cache, "train", ids), ids)
        except (DataError, DiskError):
            if data is None:
                raise
        else:
            return lambda names: _require_verified(pack.pixels[pack.rows(names)], names, pack.folder)
    if data is None:
        return None
    source = data.patches("train")
    return lambda names: np.stack([read_verified_patch(source, name) for name in names])


def _require_verified(pixels: Pixels, names: Sequence[str], source: Path) -> Pixels:
    """Return `pixels` if they match their ids.

    Raises:
        DataError: the pixels of a patch do not match its id.
    """
    wrong = [name for name, one in zip(names, pixels, strict=True) if patch_id(one) != name]
    if wrong:
        raise DataError(f"{source}: {wrong[0]} is damaged on disk", "", "Delete the cache folder, or give --data")
    return pixels


def _make_specimens(
    oof: Oof, rows: Sequence[int], slides: Sequence[str] | None, reader: _Reader | None
) -> list[_Specimen]:
    """Return the rows as specimens, with images if there is a reader."""
    found = [
        _Specimen(
            oof.ids[row], int(oof.labels[row]), int(oof.fold[row]), float(oof.probabilities[row]),
            slides[row] if slides else "",
        )
        for row in rows
    ]  # fmt: skip
    if reader is None or not found:
        return found
    pixels = reader([one.id for one in found])
    return [replace(one, picture=_png_uri(pixels[place])) for place, one in enumerate(found)]


def _explain_all(specimens: Sequence[_Specimen], run_dir: RunDir, reader: _Reader) -> tuple[list[_Specimen], list[str]]:
    """Add views and evidence maps to specimens, computed with the weights of the fold that held them out.

    Returns:
        The specimens, and the reasons why some have no views or no map.
    """
    if not run_dir.config.exists():
        return list(specimens), [f"{_NOTHING_SHOWN}: {run_dir.root.name} has no config and no weights of its own"]
    explained: dict[str, _Specimen] = {}
    reasons = []
    for fold in sorted({one.fold for one in specimens}):
        mine = [one for one in specimens if one.fold == fold]
        try:
            explained.update(_explain_fold(mine, run_dir, fold, reader))
        except ClarisError as error:
            reasons.append(f"{_NOTHING_SHOWN}: {error.found}")
    if any(not one.map for one in explained.values()):
        from claris_kaggle.inference.evidence import NO_MAP

        reasons.append(NO_MAP.capitalize())
    return [explained.get(one.id, one) for one in specimens], reasons


def _explain_fold(specimens: Sequence[_Specimen], run_dir: RunDir, fold: int, reader: _Reader) -> dict[str, _Specimen]:
    """Return the specimens of one fold by id, each with its views and evidence map.

    Raises:
        ClarisError: the weights of the fold are missing, incomplete, or of a different version.
    """
    from claris_kaggle.inference.evidence import centre_share, explain
    from claris_kaggle.models.factory import trained_network
    from claris_kaggle.models.weights import load_finished
    from claris_kaggle.runtime.precision import usable_precision

    config = TrainConfig.from_json(read_json(run_dir.config), run_dir.config)
    config = replace(config, precision=usable_precision("", config.precision, "cpu"))
    model = trained_network(config)
    load_finished(run_dir.fold(fold), model)
    found = explain(model, reader([one.id for one in specimens]), config, views=_VIEWS)
    if found.maps is None:
        seen = [replace(one, crop=config.crop) for one in specimens]
    else:
        shares = centre_share(found.maps, config.crop).tolist()
        seen = [
            replace(
                one, crop=config.crop, map=_png_uri(_paint_map(parts)), centre=share,
                strongest=float(np.abs(parts).max()),
            )
            for one, parts, share in zip(specimens, found.maps, shares, strict=True)
        ]  # fmt: skip
    views = found.view_probabilities.T.tolist()
    return {one.id: replace(one, views=tuple(row)) for one, row in zip(seen, views, strict=True)}


def _paint_map(parts: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Convert an evidence map to uint8 RGBA [h, w, 4]: orange for malignant, blue for benign, transparent for zero."""
    strength = np.abs(parts) / max(float(np.abs(parts).max()), 1e-12)
    colours = np.where(parts[:, :, None] > 0, np.array(_MALIGNANT_COLOR), np.array(_BENIGN_COLOR))
    alpha = np.rint(255 * _MAP_OPACITY * strength)[:, :, None]
    return np.concatenate([colours, alpha], axis=2).astype(np.uint8)

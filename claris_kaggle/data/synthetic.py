"""Synthetic H&E-like patches in the competition's layout, to try all commands without its files.

Sizes, ids, labels and slides follow the competition. `_draw_patch` draws each patch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.core.console import Progress
from claris_kaggle.core.errors import UsageError
from claris_kaggle.core.files import create_folder, read_json, write_json, write_text
from claris_kaggle.core.paths import DataDir
from claris_kaggle.data.arrays import Pixels
from claris_kaggle.data.patches import CENTRE, SIZE, _encode_tiff, patch_id

# Optical density of haematoxylin and eosin in R, G, B (Ruifrok and Johnston 2001).
_SYNTHETIC_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
_PATCH_CENTRE, _HALF_CENTRE = SIZE / 2, CENTRE / 2
_GRID = np.arange(SIZE) + 0.5
_Plane = NDArray[np.float64]

_SYNTHETIC_FORMAT = 1
_MALIGNANT_SHARE = 0.4


class _Patch(NamedTuple):
    """A synthetic patch: pixels uint8 [96, 96, 3], label and slide."""

    pixels: Pixels
    label: int
    slide: str


def generate(root: Path | str, *, train: int = 300, test: int = 60, slides: int = 20, seed: int = 0) -> Path:
    """Create a folder of synthetic patches in the competition's layout, with `slides.csv` and `test_answers.csv`.

    Args:
        root: the folder to create, written atomically; unchanged if it already contains these patches.
        train, test: numbers of patches. Four training patches are special: black, white, bare glass, out of focus.
        slides: number of slides of the training patches, at least 5; a third as many other slides give test patches.
        seed: another seed gives other patches.
    Returns:
        root.
    Raises:
        UsageError: the numbers are too small, or root contains something else.
    """
    root = Path(root)
    if slides < 5 or train < 4 * slides or test < 4:
        found = f"{train} training patches of {slides} slides and {test} test patches"
        raise UsageError(found, "expected at least 5 slides, 4 patches of each and 4 test patches")
    expected = {"format": _SYNTHETIC_FORMAT, "train": train, "test": test, "slides": slides, "seed": seed}
    if root.exists():
        marker = DataDir(root).generated
        if marker.exists() and read_json(marker) == expected:
            return root
        raise UsageError(f"{root}: contains other files", "expected a new folder", "Give another folder, or remove it")
    with create_folder(root) as temporary:
        _write_layout(temporary, train=train, test=test, slides=slides, seed=seed)
        write_json(DataDir(temporary).generated, expected)
    return root


def draw_example(label: int) -> Pixels:
    """Return a synthetic patch, uint8 [96, 96, 3], with label 0 (benign) or 1 (malignant)."""
    generator = _make_generator(0, "one", label)
    return _draw_patch(generator, _make_stain(generator), label)


def _write_layout(root: Path, *, train: int, test: int, slides: int, seed: int) -> None:
    """Write all files of the competition's layout."""
    with Progress("generate", train + test) as progress:
        patches = _make_split("train", train - 4, slides, seed, progress) + _make_special_patches(seed)
        train_ids = _write_patches(root / "train", patches)
        rows = sorted((name, patch.label, patch.slide) for name, patch in zip(train_ids, patches, strict=True))
        _write_csv(root / "train_labels.csv", "id,label", [(name, label) for name, label, _ in rows])
        _write_csv(root / "slides.csv", "id,wsi", [(name, slide) for name, _, slide in rows])
        patches = _make_split("test", test, max(2, slides // 3), seed, progress)
        test_ids = _write_patches(root / "test", patches)
    # As in the competition, the sample is not sorted: a submission must follow its order.
    _write_csv(root / "sample_submission.csv", "id,label", [(name, 0) for name in test_ids])
    answers = [(name, patch.label) for name, patch in zip(test_ids, patches, strict=True)]
    _write_csv(root / "test_answers.csv", "id,label", answers)


def _write_csv(path: Path, header: str, rows: Sequence[tuple[object, ...]]) -> None:
    """Write a CSV of values that need no quotes."""
    write_text(path, "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")


def _write_patches(folder: Path, patches: Sequence[_Patch]) -> list[str]:
    """Write each patch as `<id>.tif`; return the ids, in the order of the patches."""
    folder.mkdir()
    ids = [patch_id(patch.pixels) for patch in patches]
    for name, patch in zip(ids, patches, strict=True):
        (folder / f"{name}.tif").write_bytes(_encode_tiff(patch.pixels))
    return ids


def _make_split(split: str, total: int, slides: int, seed: int, progress: Progress) -> list[_Patch]:
    """Return the patches of a split, assigned to slides in turn, each with its own random generator."""
    from joblib import Parallel, delayed

    stains = [_make_stain(_make_generator(seed, split, "stain", number)) for number in range(slides)]

    def make(number: int) -> _Patch:
        slide = number % slides
        generator = _make_generator(seed, split, "patch", number)
        # Labels are assigned slide by slide, so that every slide has both classes.
        label = int((number // slides + slide * 0.37) * _MALIGNANT_SHARE % 1 < _MALIGNANT_SHARE)
        return _Patch(_draw_patch(generator, stains[slide], label), label, f"{split}_{slide:03d}")

    parallel = Parallel(n_jobs=os.cpu_count() or 1, prefer="threads", return_as="generator")
    patches = []
    for patch in parallel(delayed(make)(number) for number in range(total)):
        patches.append(patch)
        progress.update(1)
    return patches


def _make_generator(seed: int, *names: object) -> np.random.Generator:
    """Return a random generator that depends on the seed and the names only."""
    word = hashlib.blake2b("/".join(map(str, (seed, *names))).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(word, "little"))


def _make_special_patches(seed: int) -> list[_Patch]:
    """Return four special patches (black, white, bare glass, out of focus): all benign, on existing slides."""
    from scipy.ndimage import gaussian_filter

    generator = _make_generator(seed, "odd")
    glass = np.clip(np.rint(generator.normal(238, 2, (SIZE, SIZE, 3))), 0, 255).astype(np.uint8)
    sharp = _draw_patch(generator, _make_stain(generator), 0).astype(np.float64)
    pictures = [
        np.zeros((SIZE, SIZE, 3), np.uint8),
        np.full((SIZE, SIZE, 3), 255, np.uint8),
        glass,
        np.rint(gaussian_filter(sharp, (3, 3, 0))).astype(np.uint8),
    ]
    return [_Patch(pixels, 0, f"train_{slide:03d}") for slide, pixels in enumerate(pictures)]


class _Stain(NamedTuple):
    """The stain of a slide: optical density vectors [2, 3] and the mean amount of each stain [2]."""

    vectors: _Plane
    amounts: _Plane


def _make_stain(generator: np.random.Generator) -> _Stain:
    """Return a random stain for a slide; it varies like stains of different laboratories."""
    vectors = _SYNTHETIC_STAINS * generator.uniform(0.85, 1.15, (2, 3))
    return _Stain(vectors, np.array([0.30, 0.32]) * generator.uniform(0.7, 1.3, 2))


def _draw_patch(generator: np.random.Generator, stain: _Stain, label: int) -> Pixels:
    """Return one patch of synthetic tissue, uint8 [96, 96, 3]."""
    tumour = _draw_tumour_mask(generator, label)
    haematoxylin = _draw_nuclei(generator, tumour)
    eosin = _smooth_noise(generator, 12) + 0.5 * _smooth_noise(generator, 5)
    amounts = stain.amounts * generator.uniform(0.85, 1.15, 2)
    planes = np.stack([haematoxylin, np.clip(eosin + 1.5, 0.1, None)], axis=-1)
    density = planes * amounts / planes.mean(axis=(0, 1)) @ stain.vectors
    picture = 255 * np.exp(-1.3 * density) + generator.normal(0, 3, (SIZE, SIZE, 3))
    return _remove_color_cue(generator, picture, stain)


def _remove_color_cue(generator: np.random.Generator, picture: _Plane, stain: _Stain) -> Pixels:
    """Replace the local mean colour (over about 30 pixels) by a colour that does not depend on the label."""
    from scipy.ndimage import gaussian_filter

    mean_color = 255 * np.exp(-1.3 * stain.amounts @ stain.vectors) + generator.normal(0, 8, 3)
    new_color = mean_color + 8 * _smooth_noise(generator, 40)[:, :, None]
    result = picture - gaussian_filter(picture, (14, 14, 0), mode="reflect") + new_color
    return np.clip(np.rint(result), 0, 255).astype(np.uint8)


def _draw_tumour_mask(generator: np.random.Generator, label: int) -> _Plane:
    """Return the tumour mask, 0..1 [96, 96]: over the centre for label 1, otherwise beside it or empty."""
    rows, columns = np.meshgrid(_GRID, _GRID, indexing="ij")
    if label:
        centre, radius = _PATCH_CENTRE + generator.uniform(-8, 8, 2), generator.uniform(26, 60)
    elif generator.random() < 0.4:
        radius = generator.uniform(15, 25)
        distance_from_centre, angle = radius + _HALF_CENTRE * 2**0.5 + 2, generator.uniform(0, 2 * np.pi)
        centre = _PATCH_CENTRE + distance_from_centre * np.array([np.sin(angle), np.cos(angle)])
    else:
        return np.zeros((SIZE, SIZE))
    distance = np.hypot(rows - centre[0], columns - centre[1])
    return np.clip((radius - distance) / 4 + 0.5, 0, 1)


def _draw_nuclei(generator: np.random.Generator, tumour: _Plane) -> _Plane:
    """Return the haematoxylin plane [96, 96]: large pale nuclei with dark rims in tumour, small dark ones elsewhere."""
    plane = 0.12 + 0.03 * _smooth_noise(generator, 8)
    # The classes overlap: some tumours have small nuclei, and some benign tissue has enlarged ones.
    sizes = {True: generator.uniform(0.75, 1.1), False: generator.uniform(0.8, 1.35)}
    for large, spacing in ((True, 12), (False, 9)):
        for row, column in _jittered_grid(generator, spacing):
            inside = tumour[min(int(row), SIZE - 1), min(int(column), SIZE - 1)]
            if (inside > 0.5) == large and generator.random() < 0.8:
                _draw_nucleus(generator, plane, (row, column), sizes[large], large)
    return plane


def _jittered_grid(generator: np.random.Generator, spacing: int) -> _Plane:
    """Return positions [N, 2] in pixels, one in each cell of a jittered grid."""
    grid = np.arange(0, SIZE, spacing) + spacing / 2
    positions = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.clip(positions + generator.uniform(-0.4, 0.4, positions.shape) * spacing, 0, SIZE - 1)


def _draw_nucleus(
    generator: np.random.Generator, plane: _Plane, centre: tuple[float, float], size: float, large: bool
) -> None:
    """Draw one elliptic nucleus onto the plane; `size` is relative to the usual size."""
    row, column = centre
    radius = size * (generator.uniform(4.5, 6.5) if large else generator.uniform(1.8, 2.6))
    elongation, angle = generator.uniform(1.0, 1.5), generator.uniform(0, np.pi)
    half_width = int(radius * elongation) + 3
    top, left = max(int(row) - half_width, 0), max(int(column) - half_width, 0)
    window = plane[top : int(row) + half_width + 1, left : int(column) + half_width + 1]
    rows = _GRID[top : top + window.shape[0], None] - row
    columns = _GRID[None, left : left + window.shape[1]] - column
    major = (rows * np.cos(angle) + columns * np.sin(angle)) / elongation
    minor = columns * np.cos(angle) - rows * np.sin(angle)
    distance = np.hypot(major, minor) - radius  # in pixels, below 0 inside
    body = np.clip(0.5 - distance, 0, 1)
    if large:
        rim = np.exp(-((distance + 0.8) ** 2) / 1.5)
        shade = 0.45 * body + 0.75 * rim + 0.5 * np.exp(-(major**2 + minor**2) / 2)
    else:
        shade = 1.3 * body
    np.maximum(window, shade * generator.uniform(0.85, 1.15), out=window)


def _smooth_noise(generator: np.random.Generator, scale: int) -> _Plane:
    """Return noise [96, 96] with mean about 0 and standard deviation about 1 that varies over `scale` pixels."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(generator.normal(size=(SIZE, SIZE)), scale / 2, mode="reflect")
    return np.asarray(field / max(field.std(), 1e-9))

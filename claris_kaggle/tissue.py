"""Drawn H&E-like tissue: one patch with its label, from random numbers and a slide's stain.

Benign tissue has small dark nuclei, tumour has large pale ones with a rim; a patch is malignant
when a tumour island covers its centre 32 x 32. Benign patches may have an island beside the
centre. Each slide has its own stain, and each patch's mean colour is set to one that does not
depend on its label, so that no rule of mean colour tells the classes apart.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.patches import CENTRE, SIZE, Pixels

# Optical density of haematoxylin and eosin in R, G, B (Ruifrok and Johnston 2001).
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
MIDDLE, HALF_CENTRE = SIZE / 2, CENTRE / 2
GRID = np.arange(SIZE) + 0.5
Plane = NDArray[np.float64]


class Stain(NamedTuple):
    """How a slide looks: optical density vectors [2, 3] and the usual amount of each stain [2]."""

    vectors: Plane
    amounts: Plane


def make_stain(generator: np.random.Generator) -> Stain:
    """A slide's own stain, as far from the common one as laboratories are from each other."""
    vectors = STAINS * generator.uniform(0.85, 1.15, (2, 3))
    return Stain(vectors, np.array([0.30, 0.32]) * generator.uniform(0.7, 1.3, 2))


def draw_patch(generator: np.random.Generator, stain: Stain, label: int) -> Pixels:
    """One patch of tissue, uint8 [96, 96, 3]."""
    island = tumour_island(generator, label)
    haematoxylin = draw_nuclei(generator, island)
    eosin = smooth_noise(generator, 12) + 0.5 * smooth_noise(generator, 5)
    amounts = stain.amounts * generator.uniform(0.85, 1.15, 2)
    planes = np.stack([haematoxylin, np.clip(eosin + 1.5, 0.1, None)], axis=-1)
    density = planes * amounts / planes.mean(axis=(0, 1)) @ stain.vectors
    picture = 255 * np.exp(-1.3 * density) + generator.normal(0, 3, (SIZE, SIZE, 3))
    return level(generator, picture, stain)


def level(generator: np.random.Generator, picture: Plane, stain: Stain) -> Pixels:
    """The picture with its colour over any area of some 30 pixels set to one that is free of the label."""
    from scipy.ndimage import gaussian_filter

    usual = 255 * np.exp(-1.3 * stain.amounts @ stain.vectors) + generator.normal(0, 8, 3)
    wanted = usual + 8 * smooth_noise(generator, 40)[:, :, None]
    levelled = picture - gaussian_filter(picture, (14, 14, 0), mode="reflect") + wanted
    return np.clip(np.rint(levelled), 0, 255).astype(np.uint8)


def tumour_island(generator: np.random.Generator, label: int) -> Plane:
    """Where tumour grows, 0..1 [96, 96]: over the centre for label 1, else beside it or nowhere."""
    rows, columns = np.meshgrid(GRID, GRID, indexing="ij")
    if label:
        place, radius = MIDDLE + generator.uniform(-8, 8, 2), generator.uniform(26, 60)
    elif generator.random() < 0.4:
        radius = generator.uniform(15, 25)
        away, angle = radius + HALF_CENTRE * 2**0.5 + 2, generator.uniform(0, 2 * np.pi)
        place = MIDDLE + away * np.array([np.sin(angle), np.cos(angle)])
    else:
        return np.zeros((SIZE, SIZE))
    distance = np.hypot(rows - place[0], columns - place[1])
    return np.clip((radius - distance) / 4 + 0.5, 0, 1)


def draw_nuclei(generator: np.random.Generator, island: Plane) -> Plane:
    """Haematoxylin [96, 96]: large pale nuclei with a dark rim on the island, small dark ones elsewhere."""
    plane = 0.12 + 0.03 * smooth_noise(generator, 8)
    # The classes overlap: some tumours have small nuclei, some benign tissue swollen ones.
    sizes = {True: generator.uniform(0.75, 1.1), False: generator.uniform(0.8, 1.35)}
    for large, spacing in ((True, 12), (False, 9)):
        for row, column in scatter(generator, spacing):
            inside = island[min(int(row), SIZE - 1), min(int(column), SIZE - 1)]
            if (inside > 0.5) == large and generator.random() < 0.8:
                stamp_nucleus(generator, plane, (row, column), sizes[large], large)
    return plane


def scatter(generator: np.random.Generator, spacing: int) -> Plane:
    """Places [N, 2] in pixels, one in each square of a jittered grid."""
    grid = np.arange(0, SIZE, spacing) + spacing / 2
    places = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.clip(places + generator.uniform(-0.4, 0.4, places.shape) * spacing, 0, SIZE - 1)


def stamp_nucleus(
    generator: np.random.Generator, plane: Plane, place: tuple[float, float], size: float, large: bool
) -> None:
    """Lay one elliptic nucleus over the plane; `size` 1 is the usual one."""
    row, column = place
    radius = size * (generator.uniform(4.5, 6.5) if large else generator.uniform(1.8, 2.6))
    longer, angle = generator.uniform(1.0, 1.5), generator.uniform(0, np.pi)
    reach = int(radius * longer) + 3
    top, left = max(int(row) - reach, 0), max(int(column) - reach, 0)
    window = plane[top : int(row) + reach + 1, left : int(column) + reach + 1]
    rows, columns = np.meshgrid(
        GRID[top : top + window.shape[0]] - row, GRID[left : left + window.shape[1]] - column, indexing="ij"
    )
    along = (rows * np.cos(angle) + columns * np.sin(angle)) / longer
    across = columns * np.cos(angle) - rows * np.sin(angle)
    distance = np.hypot(along, across) - radius  # in pixels, below 0 inside
    body = np.clip(0.5 - distance, 0, 1)
    if large:
        rim = np.exp(-((distance + 0.8) ** 2) / 1.5)
        shade = 0.45 * body + 0.75 * rim + 0.5 * np.exp(-(along**2 + across**2) / 2)
    else:
        shade = 1.3 * body
    np.maximum(window, shade * generator.uniform(0.85, 1.15), out=window)


def smooth_noise(generator: np.random.Generator, scale: int) -> Plane:
    """Noise [96, 96] of mean about 0 and size about 1 that changes over `scale` pixels."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(generator.normal(size=(SIZE, SIZE)), scale / 2, mode="reflect")
    return np.asarray(field / max(field.std(), 1e-9))

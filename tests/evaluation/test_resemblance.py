"""Test statistics of patches: equal for all views, with the stated rate of false alarms."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis

from claris_kaggle.core.errors import DataError
from claris_kaggle.core.paths import DataDir
from claris_kaggle.data.arrays import Pixels
from claris_kaggle.data.patches import read_patch
from claris_kaggle.evaluation.resemblance import PatchStatistics, _channel_densities, _features, has_tissue


@pytest.fixture(scope="module")
def patches(generated: DataDir) -> Pixels:
    return np.stack([read_patch(path) for path in sorted(generated.patches("train").iterdir())])


def test_all_views_of_a_patch_have_one_distance(patches: Pixels) -> None:
    patches = patches[::4]
    found = PatchStatistics.fit(patches, np.arange(len(patches)) % 3)
    plain = found.distances(patches)
    for turns in range(4):
        turned = np.rot90(patches, turns, (1, 2))
        np.testing.assert_allclose(found.distances(turned), plain, rtol=1e-3)
        np.testing.assert_allclose(found.distances(turned[:, :, ::-1]), plain, rtol=1e-3)


def test_the_limit_is_exceeded_as_rarely_as_stated(patches: Pixels) -> None:
    found = PatchStatistics.fit(patches, np.arange(len(patches)) % 3)
    assert found.patches == 240 and 1 <= (found.distances(patches) > found.limit).sum() <= 2
    assert 0 <= found.held_out_rate < 0.1


def test_statistics_survive_json_and_damage_is_one_line(patches: Pixels) -> None:
    found = PatchStatistics.fit(patches, np.arange(len(patches)) % 3)
    again = PatchStatistics.from_json(found.to_json(), "x")
    np.testing.assert_array_equal(again.distances(patches[:5]), found.distances(patches[:5]))
    for wrong in ({}, {**found.to_json(), "format": 9}, {**found.to_json(), "mean": [1]}):
        with pytest.raises(DataError, match="x: damaged or of another format"):
            PatchStatistics.from_json(wrong, "x")


def test_white_has_no_tissue(patches: Pixels) -> None:
    assert has_tissue(patches).mean() > 0.95 and not has_tissue(np.full((2, 96, 96, 3), 245, dtype=np.uint8)).any()


def compute_features(patch: np.ndarray) -> list[float]:
    """Return the features of one patch in optical density, computed pixel by pixel and block by block."""
    density = -np.log10((patch.astype(np.float64) + 1) / 256)
    grey = density.mean(axis=2)
    blocks = np.array([[grey[8 * i : 8 * i + 8, 8 * j : 8 * j + 8].mean() for j in range(12)] for i in range(12)])
    values = [density[..., colour].mean() for colour in range(3)]
    values += [density[..., colour].std() for colour in range(3)]
    for image in (grey, blocks):
        down, right = np.abs(image[1:] - image[:-1]), np.abs(image[:, 1:] - image[:, :-1])
        values.append(down.mean() + right.mean())
    values += [(density[..., colour] - grey).std() for colour in range(3)]
    return [float(np.log(value + 0.01)) for value in values]


def test_features_are_those_of_a_plain_loop_in_any_number_of_patches(patches: Pixels) -> None:
    found = _features(patches[:130])
    assert found.shape == (130, 11) and found.dtype == np.float64
    for row in (0, 63, 64, 129):
        assert found[row] == pytest.approx(compute_features(patches[row]), rel=1e-4)


def test_statistics_are_mahalanobis_distances_from_the_training_patches(patches: Pixels) -> None:
    patches = patches[:60]
    found = PatchStatistics.fit(patches, np.arange(60) % 3)
    features = _features(patches)
    covariance = np.cov(features, rowvar=False) + 1e-6 * np.eye(11)
    assert found.patches == 60 and found.mean == pytest.approx(features.mean(axis=0))
    assert found.precision @ covariance == pytest.approx(np.eye(11), abs=1e-6)
    inverse = np.linalg.inv(covariance)
    plain = [mahalanobis(row, features.mean(axis=0), inverse) for row in features]
    assert found.distances(patches) == pytest.approx(plain, rel=1e-6)
    assert found.limit == pytest.approx(np.quantile(plain, 0.995), rel=1e-6)
    beyond = 0
    for number in range(3):
        inside = np.arange(60) % 3 == number
        others = PatchStatistics.fit(patches[~inside], np.zeros(40, np.int64))
        beyond += int((others.distances(patches[inside]) > others.limit).sum())
    assert beyond > 1 and found.held_out_rate == beyond / 60


def test_a_fold_that_leaves_fewer_than_two_patches_is_not_held_out(patches: Pixels) -> None:
    assert PatchStatistics.fit(patches[:9], np.array([0] * 8 + [1])).held_out_rate <= 1 / 9
    assert PatchStatistics.fit(patches[:9], np.zeros(9, np.int64)).held_out_rate == 0
    two = PatchStatistics.fit(patches[:4], np.array([0, 0, 1, 1]))
    assert two.held_out_rate == 1.0, "two patches are no measure of two others"


def test_the_json_names_features_and_quantile_and_keeps_every_number(patches: Pixels) -> None:
    found = PatchStatistics.fit(patches[:30], np.arange(30) % 2)
    content = found.to_json()
    assert list(content) == ["format", "features", "quantile", "patches", "mean", "precision", "limit", "held_out_rate"]
    assert (content["format"], content["quantile"], len(content["features"])) == (1, 0.995, 11)  # type: ignore[arg-type]
    again = PatchStatistics.from_json(json.loads(json.dumps(content)), "x")
    assert again.to_json() == content and (again.patches, again.limit) == (30, found.limit)
    assert again.held_out_rate == found.held_out_rate and again.precision.dtype == again.mean.dtype == np.float64
    damaged: list[dict[str, object]] = [
        {**content, "precision": [[1.0]]}, {**content, "limit": "far"}, {**content, "patches": None},
        {name: value for name, value in content.items() if name != "held_out_rate"},
    ]  # fmt: skip
    for wrong in damaged:
        with pytest.raises(DataError) as caught:
            PatchStatistics.from_json(wrong, "x.json")
        assert str(caught.value) == "x.json: damaged or of another format. Remove it, then run claris predict"


def test_one_percent_of_pixels_darker_than_the_background_are_tissue() -> None:
    """The limit is a mean optical density of 0.05: 228 of 255 is just below it, 227 just above."""
    patch = np.full((1, 96, 96, 3), 228, dtype=np.uint8)
    patch.reshape(-1, 3)[:92] = 227
    assert not has_tissue(patch).any(), "92 of 9,216 pixels are less than 1 %"
    patch.reshape(-1, 3)[:93] = 227
    assert has_tissue(np.concatenate([np.full_like(patch, 228), patch])).tolist() == [False, True]
    patch.reshape(-1, 3)[:93] = [200, 255, 255]
    assert not has_tissue(patch).any(), "dark in a single channel"
    colour = _channel_densities(np.array([0, 255, 24], np.uint8).reshape(1, 1, 1, 3))
    assert colour.ravel().tolist() == pytest.approx([np.log10(256), 0, np.log10(10.24)])

"""Statistics of patches: the same for all views, and a rate of false alarms as stated."""

from __future__ import annotations

import numpy as np
import pytest

from claris_kaggle.core.errors import DataError
from claris_kaggle.core.paths import DataDir
from claris_kaggle.data.arrays import Pixels
from claris_kaggle.data.patches import read_patch
from claris_kaggle.evaluation.resemblance import PatchStatistics, has_tissue


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

"""Test evidence maps: the cells and the bias sum to the log-odds, and each cell is at its own position."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.errors import DataError, UsageError
from claris_kaggle.data.d4 import undo_view, view
from claris_kaggle.data.pack import Pack
from claris_kaggle.inference.evidence import Evidence, _find_linear_head, centre_share, explain
from claris_kaggle.inference.forward import _view_logits, predict_ids
from claris_kaggle.models.factory import create_model, fuse_batch_norm
from claris_kaggle.runtime.distributed import World

PLAIN = TrainConfig(model="tiny", precision="fp32")


def patches(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (number, 96, 96, 3), dtype=np.uint8)


def randomise_statistics(model: torch.nn.Module) -> torch.nn.Module:
    """Give the batch norms and biases of a network random values, as after training, and return it."""
    torch.manual_seed(1)
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(part.running_var, 0.5, 2.0)
        elif isinstance(part, torch.nn.Linear) and part.bias is not None:
            torch.nn.init.normal_(part.bias)
    return model.eval()


def check_sum(found: Evidence, model: torch.nn.Module, images: np.ndarray, config: TrainConfig, views: int) -> None:
    with torch.inference_mode():
        logits = _view_logits(model, torch.from_numpy(images), config, views)
    needed = (logits[..., 1] - logits[..., 0]).mean(dim=0).numpy()
    assert found.maps is not None
    np.testing.assert_allclose(found.log_odds, needed, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.maps.sum(axis=(1, 2)) + found.bias, needed, rtol=0, atol=1e-5)


@pytest.mark.parametrize("views", [1, 4, 8])
@pytest.mark.parametrize("crop", [32, 64, 80, 96])
def test_parts_and_bias_are_the_log_odds(views: int, crop: int) -> None:
    model, images = randomise_statistics(create_model("tiny")), patches(5)
    config = dataclasses.replace(PLAIN, crop=crop)
    check_sum(explain(model, images, config, views=views), model, images, config, views)


@pytest.mark.parametrize(
    ("layout", "crop", "grid", "folded"),
    [
        ({}, 96, (3, 3), False),
        ({}, 64, (2, 2), True),
        ({"stem": "no-pool"}, 96, (6, 6), True),
        ({"stem": "pool4", "tail": "no-pool"}, 96, (3, 3), True),
    ],
)
def test_a_real_densenets_parts_and_bias_are_its_log_odds(
    layout: dict[str, str], crop: int, grid: tuple[int, int], folded: bool
) -> None:
    model, images = randomise_statistics(create_model("densenet121", **layout)), patches(2)
    model = fuse_batch_norm(model) if folded else model
    config = dataclasses.replace(PLAIN, model="densenet121", crop=crop, **layout)
    found = explain(model, images, config, views=4)
    assert found.maps is not None and found.maps.shape == (2, *grid) and found.maps.dtype == np.float32
    assert found.view_probabilities.shape == (4, 2) and np.ptp(found.maps) > 0
    check_sum(found, model, images, config, 4)


def test_in_lower_precision_the_parts_are_the_log_odds_but_for_rounding() -> None:
    model, images = randomise_statistics(create_model("tiny")), patches(3)
    found = explain(model, images, dataclasses.replace(PLAIN, precision="bf16"))
    assert found.maps is not None
    np.testing.assert_allclose(found.maps.sum(axis=(1, 2)) + found.bias, found.log_odds, rtol=0, atol=0.05)


def test_probabilities_are_those_of_predict_to_the_bit(pack_of_seventy: Pack) -> None:
    model = randomise_statistics(create_model("tiny"))
    needed = predict_ids(model, pack_of_seventy, pack_of_seventy.ids, World(0, 0, 1, torch.device("cpu")), PLAIN)
    found = explain(model, np.array(pack_of_seventy.pixels), PLAIN)
    assert found.probabilities.tobytes() == needed.tobytes()
    np.testing.assert_allclose(found.view_probabilities.mean(axis=0), needed, rtol=0, atol=1e-7)


@pytest.fixture
def pack_of_seventy(tmp_path: Path) -> Pack:
    return Pack([f"{number:040x}" for number in range(70)], patches(70), tmp_path)


LABELLED = torch.arange(6 * 6).reshape(1, 6, 6)


@pytest.mark.parametrize("number", range(8))
def test_every_view_is_undone(number: int) -> None:
    assert torch.equal(undo_view(view(LABELLED, number), number), LABELLED)
    assert torch.equal(view(undo_view(LABELLED, number), number), LABELLED)


class Brightness(torch.nn.Module):
    """A network whose log-odds depend on the mean brightness of a 3 x 3 grid, equally in every view."""

    def __init__(self) -> None:
        super().__init__()
        self.last = torch.nn.Linear(1, 2)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images.mean(dim=1, keepdim=True), 3)

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        return self.last(features.mean(dim=(2, 3)))

    def get_classifier(self) -> torch.nn.Module:
        return self.last

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(images))


@pytest.mark.parametrize("place", [(0, 0), (0, 2), (1, 2), (2, 1)])
def test_a_part_stands_where_its_pixels_are_in_every_view(place: tuple[int, int]) -> None:
    images = np.zeros((1, 96, 96, 3), dtype=np.uint8)
    images[0, place[0] * 32 : place[0] * 32 + 32, place[1] * 32 : place[1] * 32 + 32] = 255
    model = Brightness()
    one, eight = (explain(model, images, PLAIN, views=views).maps for views in (1, 8))
    assert one is not None and eight is not None
    np.testing.assert_allclose(eight, one, atol=1e-6)
    assert np.unravel_index(np.abs(eight[0] - np.median(eight[0])).argmax(), (3, 3)) == place


@pytest.mark.parametrize("pool", ["max", "avgmax", "catavgmax", "gem"])
def test_other_poolings_split_exactly_too(pool: str) -> None:
    model, images = randomise_statistics(create_model("tiny", global_pool=pool)), patches(3)
    found = explain(model, images, PLAIN)
    check_sum(found, model, images, PLAIN, 8)
    assert found.maps is not None
    mean = explain(randomise_statistics(create_model("tiny")), images, PLAIN)
    assert mean.maps is not None and not np.allclose(found.maps, mean.maps, atol=1e-4)


@pytest.mark.parametrize(("name", "pool"), [("test_resnet", "gem"), ("swin_tiny_patch4_window7_224", "")])
def test_the_split_knows_the_layout_and_pooling_of_timms_networks(name: str, pool: str) -> None:
    model, images = randomise_statistics(create_model(name, global_pool=pool)), patches(2)
    check_sum(explain(model, images, PLAIN, views=4), model, images, PLAIN, 4)


@pytest.mark.parametrize(
    ("name", "has"),
    [("resnet18", True), ("test_convnext", False), ("test_vit", False), ("mobilenetv3_small_050", False)],
)
def test_a_network_with_another_end_has_probabilities_and_no_map(name: str, has: bool) -> None:
    model = create_model(name).eval()
    with torch.inference_mode():
        assert (_find_linear_head(model) is not None) == has
    if name == "mobilenetv3_small_050":
        found = explain(model, patches(1), PLAIN, views=1)
        assert found.maps is None and found.bias == 0 and 0 <= found.probabilities[0] <= 1


def test_wrong_views_and_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match="1, 4 or 8"):
        explain(create_model("tiny"), patches(1), PLAIN, views=3)
    for wrong in (patches(1)[:, :95], patches(1).astype(np.float32), patches(0)):
        with pytest.raises(DataError, match="expected uint8"):
            explain(create_model("tiny"), wrong, PLAIN)


@given(st.integers(1, 12), st.sampled_from([32, 48, 64, 80, 96]), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_the_centres_share_is_that_of_its_pixels(cells: int, crop: int, seed: int) -> None:
    maps = np.random.default_rng(seed).normal(size=(2, cells, cells)).astype(np.float32)
    fine = np.abs(maps).repeat(crop, axis=1).repeat(crop, axis=2)  # a cell is crop x crop points, a pixel cells x cells
    low, high = (crop - 32) * cells // 2, (crop + 32) * cells // 2
    needed = fine[:, low:high, low:high].sum(axis=(1, 2), dtype=np.float64) / fine.sum(axis=(1, 2), dtype=np.float64)
    np.testing.assert_allclose(centre_share(maps, crop), needed, rtol=1e-5)


def test_shares_of_plain_maps() -> None:
    middle = np.zeros((1, 3, 3), dtype=np.float32)
    assert centre_share(middle, 96).tolist() == [0]
    middle[0, 1, 1] = -2
    assert centre_share(middle, 96).tolist() == [1]
    assert centre_share(np.ones((1, 3, 3), dtype=np.float32), 96)[0] == pytest.approx(1 / 9)

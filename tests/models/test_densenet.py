"""Layouts of a DenseNet for small patches: what stays as it was, and where the last grid's middle lies."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from claris_kaggle.core.errors import UsageError
from claris_kaggle.data.d4 import view
from claris_kaggle.inference.tta import _VIEW_COUNTS
from claris_kaggle.models.densenet import _CENTRE_SHARE, _CentreWeight
from claris_kaggle.models.factory import create_model

SMALL = {"tail": "no-pool", "pooling": "centre"}


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 999))
def test_the_weighted_mean_is_half_of_all_cells_and_half_of_the_middle(rows: int, columns: int, seed: int) -> None:
    grid = torch.randn(2, 3, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    inner = grid[:, :, (rows - 1) // 2 : rows // 2 + 1, (columns - 1) // 2 : columns // 2 + 1]
    needed = (1 - _CENTRE_SHARE) * grid.mean((2, 3)) + _CENTRE_SHARE * inner.mean((2, 3))
    torch.testing.assert_close(_CentreWeight()(grid).mean((2, 3)), needed)


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(0, max(_VIEW_COUNTS) - 1))
def test_the_middle_is_the_middle_in_every_view(side: int, number: int) -> None:
    patches = torch.randn(1, side, side, 4, dtype=torch.float64)

    def weighted(seen: torch.Tensor) -> torch.Tensor:
        return _CentreWeight()(seen.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    assert torch.equal(weighted(view(patches, number)), view(weighted(patches), number))


def test_every_layout_has_the_plain_networks_weights() -> None:
    plain, small = create_model("densenet121", 3), create_model("densenet121", 3, stem="no-pool", **SMALL)
    small.load_state_dict(plain.state_dict(), strict=True)
    assert small.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 1024, 4, 4)
    images = torch.randn(2, 3, 48, 48)
    assert not torch.equal(small.eval()(images), plain.eval()(images))


def test_without_the_last_pooling_half_the_pixels_end_in_as_many_cells() -> None:
    small, plain = create_model("densenet121", **SMALL), create_model("densenet121")
    assert small.forward_features(torch.zeros(1, 3, 48, 48)).shape[2:] == (3, 3)
    assert plain.forward_features(torch.zeros(1, 3, 96, 96)).shape[2:] == (3, 3)


@pytest.mark.parametrize("change", [{"stem": "no-pool"}, {"tail": "no-pool"}, {"pooling": "centre"}])
def test_another_network_is_refused_with_the_flag(change: dict[str, str]) -> None:
    ((name, value),) = change.items()
    with pytest.raises(UsageError, match=f"--{name} is {value}; only a DenseNet"):
        create_model("tiny", **change)

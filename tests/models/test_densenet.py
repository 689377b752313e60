"""Test the DenseNet layouts for small patches: same weights, different feature maps."""

from __future__ import annotations

import pytest
import torch

from claris_kaggle.core.errors import UsageError
from claris_kaggle.models.factory import create_model

SMALL = {"tail": "no-pool"}


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


@pytest.mark.parametrize("change", [{"stem": "no-pool"}, {"tail": "no-pool"}])
def test_another_network_is_refused_with_the_flag(change: dict[str, str]) -> None:
    ((name, value),) = change.items()
    with pytest.raises(UsageError, match=f"--{name} is {value}; only DenseNets"):
        create_model("tiny", **change)

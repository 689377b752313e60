"""Test rows gathered from all ranks: each exactly once, in order."""

from __future__ import annotations

import pytest
import torch

from claris_kaggle.core.errors import TrainingError
from claris_kaggle.runtime.distributed import World, gather_rows

ALONE = World(0, 0, 1, torch.device("cpu"))


def test_values_come_back_in_the_order_of_their_rows() -> None:
    values = gather_rows(ALONE, torch.tensor([2, 0, 1]), torch.tensor([0.2, 0.0, 0.1]), 3)
    assert values.tolist() == pytest.approx([0.0, 0.1, 0.2])


@pytest.mark.parametrize(("places", "wrong"), [([0, 1], 1), ([0, 1, 1], 2), ([0, 0, 0], 3)])
def test_a_row_that_is_missing_or_filled_twice_is_an_error(places: list[int], wrong: int) -> None:
    with pytest.raises(TrainingError, match=f"{wrong} of 3 rows"):
        gather_rows(ALONE, torch.tensor(places), torch.rand(len(places)), 3)

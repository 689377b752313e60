"""Test the moving average of the weights, and training without timm."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from claris_kaggle.core.paths import DataDir
from claris_kaggle.models.factory import create_model
from claris_kaggle.training.moving_average import _MovingAverage
from tests.conftest import TINY
from tests.support.runs import places

Call = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_average_is_that_of_timm_to_the_bit(decay: float) -> None:
    from timm.utils import ModelEmaV3

    model = create_model("tiny")
    ours, theirs = _MovingAverage(model, decay), ModelEmaV3(model, decay=decay, use_warmup=True)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 13):
        for value in model.state_dict().values():
            changed = torch.randn(value.shape, generator=generator) if value.is_floating_point() else value + 1
            value.copy_(changed)
        ours.update(model, step)
        theirs.update(model, step=step)
        wanted = theirs.module.state_dict()
        assert all(torch.equal(value, wanted[name]) for name, value in ours.module.state_dict().items())
    assert not torch.equal(ours.module.state_dict()["0.weight"], model.state_dict()["0.weight"])


def test_a_tiny_network_is_trained_and_predicted_without_timm(
    call: Call, generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the moving average of the preset. The import of timm takes seconds."""
    import timm  # noqa: F401

    for name in [name for name in sys.modules if name.split(".")[0] == "timm"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError):
        from timm.utils import ModelEmaV3  # noqa: F401
    arguments = places(generated, cache, tmp_path / "run")
    code, _, said = call("train", *arguments, "--folds", fold_file, *TINY, "--epochs", 1, "--fold", 0)
    assert code == 0 and "ema 0.99" in said, said
    code, _, said = call("predict", *arguments, "--views", 1)
    assert code == 0, said

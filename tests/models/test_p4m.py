"""Test p4m-equivariant networks: feature maps turn with the patch, and the checkpoint is a plain network."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.errors import UsageError
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data.d4 import view
from claris_kaggle.models.factory import create_model
from claris_kaggle.models.p4m import _share_weights, require_symmetric, untie_weights
from claris_kaggle.models.weights import read_weights
from claris_kaggle.runtime.distributed import World
from claris_kaggle.training.learner import _Learner
from tests.conftest import TINY

Call = Callable[..., tuple[int, str, str]]

# Strides meet the same pixels from either end of an image of such sides: only then can the symmetry be exact.
WHOLE = {"tiny": 33, "densenet121": 29}


def trained_a_little(name: str) -> nn.Module:
    """A shared network after some steps on noise, in training mode."""
    model = create_model(name, 3, equivariance="p4m")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3 if name == "tiny" else 1):
        images = torch.randn(4, 3, WHOLE[name], WHOLE[name], generator=generator)
        loss = nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 1, 0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def spread(model: nn.Module, side: int) -> float:
    """How far the logits of the eight views of an image without symmetry lie apart, at most."""
    image = torch.randn(1, side, side, 3, generator=torch.Generator().manual_seed(2))
    seen: list[Tensor] = [view(image, number).permute(0, 3, 1, 2) for number in range(8)]
    with torch.inference_mode():
        logits = torch.cat([model.eval()(one.contiguous()) for one in seen])
    return float((logits.amax(0) - logits.amin(0)).max() / logits.abs().max())


@pytest.mark.parametrize("name", WHOLE)
def test_a_network_of_shared_weights_sees_all_eight_views_alike_also_when_trained(name: str) -> None:
    model = untie_weights(trained_a_little(name))
    assert spread(model, WHOLE[name]) < 1e-4  # float32 through up to 121 layers
    assert spread(create_model(name, 3), WHOLE[name]) > 1e-2


def test_the_plain_copy_is_the_same_function_but_for_its_statistics() -> None:
    model = trained_a_little("tiny")
    images = torch.randn(3, 3, 96, 96)
    copied = untie_weights(model)
    assert torch.allclose(copied.train()(images), model.train()(images), atol=1e-6)
    assert set(copied.state_dict()) == set(create_model("tiny").state_dict())
    assert untie_weights(copied) is copied


def test_a_group_of_channels_has_the_mean_and_variance_of_all_its_values_together() -> None:
    model = create_model("tiny", equivariance="p4m")
    values = torch.randn(8, 1000, generator=torch.Generator().manual_seed(0)) * 2 + torch.arange(8.0)[:, None]
    norm = model.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(values.mean(1))
    norm.running_var.copy_(values.var(1, correction=0))
    state = untie_weights(model).state_dict()
    assert torch.allclose(state["1.running_mean"], values.mean().expand(8), atol=1e-5)
    assert torch.allclose(state["1.running_var"], values.var(correction=0).expand(8), atol=1e-4)


def test_an_eighth_of_the_weights_is_learned() -> None:
    counts = [
        sum(one.numel() for one in create_model("densenet121", equivariance=kind).parameters())
        for kind in ("none", "p4m")
    ]
    assert counts == [6_955_906, 869_490]


def test_a_network_with_other_layers_is_refused_by_the_layer() -> None:
    with pytest.raises(UsageError, match=r"p4m, and 0 is Conv2d with weights of \(12, 3, 3, 3\).*DenseNet"):
        _share_weights(nn.Sequential(nn.Conv2d(3, 12, 3, bias=False)))
    with pytest.raises(UsageError, match=r"GroupNorm"):
        _share_weights(nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.GroupNorm(2, 16)))


def test_a_side_at_which_strides_break_the_symmetry_is_refused_with_one_that_does_not() -> None:
    for name, layout, fitting in (("densenet121", {}, 93), ("densenet121", {"stem": "pool4", "tail": "no-pool"}, 95)):
        model = create_model(name, equivariance="p4m", **layout)
        with pytest.raises(UsageError, match=rf"p4m at 96 pixels: .*Give --crop {fitting}"):
            require_symmetric(model, 96)
        require_symmetric(model, fitting)


def test_starting_weights_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--equivariance p4m with --weights imagenet; .*--weights none"):
        TrainConfig(equivariance="p4m")


def test_a_learner_of_shared_weights_goes_on_from_its_state() -> None:
    config = TrainConfig(model="tiny", weights="none", equivariance="p4m", ema=0.9, precision="fp32")
    one, two = (
        _Learner(config, World(0, 0, 1, torch.device("cpu")), create_model("tiny", seed, equivariance="p4m"))
        for seed in (1, 2)
    )
    two.restore(one.state())
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            untie_weights(one.predictor).parameters(), untie_weights(two.predictor).parameters(), strict=True
        )
    )


@pytest.mark.parametrize(("select", "nproc"), [("best", "1"), pytest.param("last", "2", marks=pytest.mark.slow)])
def test_a_run_of_shared_weights_leaves_plain_ones_and_is_predicted_as_any_other(
    call: Call, generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path, select: str, nproc: str
) -> None:
    run = RunDir(tmp_path / "run")
    places = ["--data", str(generated.root), "--run", str(run.root), "--cache", str(cache)]
    flags = ["--equivariance", "p4m", "--crop", "89", "--fold", "0", "--select", select, "--nproc", nproc]
    code, _, said = call("train", *places, "--folds", str(fold_file), *TINY, *flags, "--epochs", "1")
    assert code == 0, said
    weights = read_weights(run.fold(0).weights)
    assert {name: value.shape for name, value in weights.items()} == {
        name: value.shape for name, value in create_model("tiny").state_dict().items()
    }
    model = create_model("tiny")
    model.load_state_dict(weights)
    assert spread(model, WHOLE["tiny"]) < 1e-4
    assert call("predict", *places, "--views", "1")[0] == 0
    assert (
        dataclasses.asdict(TrainConfig.from_json(json.loads(run.config.read_text("utf-8")), "config"))["equivariance"]
        == "p4m"
    )

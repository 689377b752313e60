"""Test global pooling and dropout of any network: created, loaded, refused, and equal after a resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.errors import UsageError
from claris_kaggle.models.factory import create_model, fuse_batch_norm, require_side, trained_network
from claris_kaggle.models.p4m import untie_weights
from claris_kaggle.models.pooling import GeM
from claris_kaggle.models.weights import load_initial_weights

IMAGES = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


def test_gem_is_a_mean_at_exponent_one_and_nears_the_maximum_above() -> None:
    # Powers of smaller numbers underflow at an exponent of 200.
    features, pool = 0.7 + 0.3 * torch.rand(2, 4, 3, 3, generator=torch.Generator().manual_seed(0)), GeM()
    for exponent, needed in ((1.0, features.mean((2, 3))), (200.0, features.amax((2, 3)))):
        torch.nn.init.constant_(pool.p, exponent)
        torch.testing.assert_close(pool(features)[:, :, 0, 0], needed, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax", "gem"])
@pytest.mark.parametrize("name", ["tiny", "test_resnet"])
def test_published_weights_fit_every_pooling(name: str, pool: str, tmp_path: Path) -> None:
    source = create_model(name, seed=1)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = create_model(name, seed=2, global_pool=pool, dropout=0.5).eval()
    load_initial_weights(model, tmp_path / "w.safetensors")
    own, theirs = model.state_dict(), source.state_dict()
    assert all(torch.equal(own[key], value) for key, value in theirs.items() if value.ndim == 4)
    with torch.inference_mode():
        pooled = [network.eval()(IMAGES) for network in (model, source)]
    assert pooled[0].shape == (2, 2) and torch.equal(*pooled) == (pool == "avg")


def test_the_exponent_of_gem_is_learned_and_saved() -> None:
    model = create_model("tiny", global_pool="gem")
    model(IMAGES).sum().backward()
    assert float(model.get_parameter("6.p").grad) != 0
    config = TrainConfig(model="tiny", weights="none", global_pool="gem")
    trained_network(config).load_state_dict(model.state_dict())


def test_a_densenet_folds_its_batch_norms_with_another_pooling() -> None:
    model = create_model("densenet121", global_pool="gem").eval()
    with torch.inference_mode():
        torch.testing.assert_close(fuse_batch_norm(model)(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)


def test_shared_weights_stay_symmetric_with_every_pooling() -> None:
    images = torch.nn.functional.interpolate(IMAGES, (61, 61))
    for pool in ("catavgmax", "gem"):
        plain = untie_weights(create_model("densenet121", equivariance="p4m", global_pool=pool)).eval()
        with torch.inference_mode():
            torch.testing.assert_close(plain(images.rot90(1, (2, 3))), plain(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "pool", "words"),
    [
        ("test_vit", "gem", "its head takes avg, max, avgmax"),
        ("test_convnext", "catavgmax", "its head takes avg, max, avgmax, gem"),
    ],
)
def test_a_pooling_that_a_head_does_not_take_is_refused_with_those_that_it_takes(
    name: str, pool: str, words: str
) -> None:
    for dropout in (0.0, 0.2):
        with pytest.raises(UsageError, match=f"--model {name} with --global-pool {pool}; {words}\\."):
            create_model(name, global_pool=pool, dropout=dropout)


def test_a_size_that_a_network_does_not_take_is_refused_with_those_that_it_takes() -> None:
    model = create_model("levit_128s", side=96)
    with pytest.raises(UsageError, match=r"100 x 100 pixels; it accepts 64, 96, 128, .*Give --resolution 96"):
        require_side(model, "levit_128s", 100)


def test_a_size_that_only_one_network_has_is_named_for_it() -> None:
    with pytest.raises(UsageError, match=r"192 x 192 pixels; it accepts 240\. Give --resolution 240"):
        require_side(create_model("crossvit_tiny_240", side=192), "crossvit_tiny_240", 192)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_convnext"])
def test_a_size_at_which_a_network_ignores_the_edge_is_refused(name: str) -> None:
    model = create_model(name, side=98).eval()
    with pytest.raises(UsageError, match=r"would ignore 2 of 98 pixel rows; .*Give --resolution 96"):
        require_side(model, name, 98)
    images = torch.rand(1, 3, 98, 98)
    cut = images.clone()
    cut[..., -2:] = 0
    assert torch.equal(model(images), model(cut))

"""Test the estimated cost of a network: operations, memory of a training step, and hours on two T4s."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.cost import measure_saved_megabytes
from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.errors import UsageError
from claris_kaggle.models.cost import NetworkCost, estimate_hours, forward_gflop, network_cost, run_cost

COMPETITION = {"train_patches": 220_025, "folds": 5, "views": 8, "predict_patches": 57_458}
# Images per second of timm's benchmarks on an RTX 3090 (fp16, channels-last, 224 pixels), as `models.cost` names them.
RESNET50 = 1218.01, 3676.35


@pytest.mark.parametrize("name", ["tiny", "test_resnet", "test_efficientnet", "test_convnext"])
def test_the_activations_are_those_of_a_real_step(name: str) -> None:
    real = measure_saved_megabytes(name, 64, 16)
    assert network_cost(name, 64, precision="fp32").saved_megabytes == pytest.approx(real, rel=0.02)


@pytest.mark.parametrize("name", ["tiny", "test_resnet", "test_efficientnet"])
def test_autocast_halves_the_activations_of_a_network_with_batch_norms(name: str) -> None:
    """The indices of a max pooling keep their eight bytes, so it is not always exactly half."""
    full, half = (network_cost(name, 64, precision=precision) for precision in ("fp32", "fp16"))
    assert 0.5 <= half.saved_megabytes / full.saved_megabytes < 0.56
    assert (half.gflop, half.weights) == (full.gflop, full.weights)


def test_autocast_keeps_the_inputs_of_layer_norms_in_float32() -> None:
    full, half = (network_cost("test_vit", 64, precision=precision) for precision in ("fp32", "fp16"))
    assert 0.6 < half.saved_megabytes / full.saved_megabytes < 0.8


def test_a_multiply_add_counts_as_two_operations() -> None:
    first, second = 27 * 8 * 24 * 24, 72 * 16 * 12 * 12
    assert forward_gflop("tiny", 96) == pytest.approx(2 * (first + second + 16 * 2) / 1e9)


def test_densenet_costs_what_is_published() -> None:
    """0.52 GMAC at 96 pixels; 1,700 images/s on one T4; 1.1 hours of two for five folds of six epochs at 128 pixels."""
    cost = network_cost("densenet121", 96)
    assert cost.gflop == pytest.approx(1.04, abs=0.005) and cost.weights == 6_955_906
    assert cost.training_rate() == pytest.approx(1.8 * 1700, rel=0.05)
    assert cost.prediction_rate() == pytest.approx(10_000, rel=0.05)
    area = (128 / 96) ** 2
    larger = replace(cost, gflop=area * cost.gflop, saved_megabytes=area * cost.saved_megabytes)
    assert larger.hours(epochs=6, **COMPETITION) == pytest.approx(1.1, abs=0.06)


def test_the_speeds_are_those_that_timm_publishes_for_another_card() -> None:
    cost, ratio = network_cost("resnet50", 224), 1.8 * 320 / 936
    assert cost.training_rate() / ratio == pytest.approx(RESNET50[0], rel=0.15)
    assert cost.prediction_rate() / ratio == pytest.approx(RESNET50[1], rel=0.20)


def test_the_memory_of_a_step_is_its_parts() -> None:
    cost = NetworkCost(gflop=1.0, saved_megabytes=10.0, weights=100_000_000, precision="fp16")
    whole = 0.75 + 1.8 + 0.4 + 100 * 10 / 1000
    assert cost.step_gigabytes(100, margin=1.0) == pytest.approx(whole)
    assert cost.step_gigabytes(100, margin=1.0, ema=False) == pytest.approx(whole - 0.4)
    largest = cost.largest_batch_size(15.0)
    assert cost.step_gigabytes(largest) <= 15.0 < cost.step_gigabytes(largest + 1)
    assert cost.largest_batch_size(2.0) == 0


def test_more_epochs_folds_and_views_take_longer() -> None:
    usual = {"epochs": 6, **COMPETITION}
    base = estimate_hours("tiny", 96, **usual)
    for name in usual:
        assert estimate_hours("tiny", 96, **{**usual, name: 2 * usual[name]}) > base, name
    assert estimate_hours("tiny", 96, **{**usual, "folds": 10}) == pytest.approx(2 * base)
    assert estimate_hours("tiny", 96, precision="fp32", **usual) > 1.5 * base


def test_layers_that_read_values_are_counted_on_the_cpu() -> None:
    """Shared weights compare views of a grid, which tensors without data cannot do."""
    config = TrainConfig(weights="none", model="tiny", equivariance="p4m", crop=93)
    assert run_cost(config).weights < network_cost("tiny", 93).weights
    assert run_cost(config).gflop == pytest.approx(network_cost("tiny", 93).gflop)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: network_cost("levit_128s", 100), "does not accept inputs of 100 x 100 pixels"),
        (lambda: forward_gflop("densnet121", 96), "unknown timm model"),
        (lambda: network_cost("tiny", 96, stem="pool4"), "only DenseNets"),
    ],
)
def test_a_network_that_cannot_be_is_one_error(ask: Callable[[], object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ask()


def test_counting_changes_no_random_state() -> None:
    before = torch.get_rng_state()
    network_cost("test_resnet", 72)
    assert np.array_equal(before.numpy(), torch.get_rng_state().numpy())

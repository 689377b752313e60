"""Test the benchmark of recipes: which results count, and the coverage of its intervals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.recipe_page import PairedDifferences, compare_all, compute_half_widths
from benchmarks.recipe_rows import BASE, RECIPES, Unit, read_unit, unit_path
from claris_kaggle.core.config import TrainConfig


def test_every_recipe_is_a_config_that_training_takes_and_a_file_of_its_own() -> None:
    assert all(isinstance(recipe.config, TrainConfig) for recipe in RECIPES.values())
    assert len({unit_path(name, 0) for name in RECIPES}) == len(RECIPES)


def test_figures_of_a_recipe_that_has_changed_since_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    kept = {"name": "scratch", "seed": 1, "options": RECIPES["scratch"].options, "probabilities": [0.5, None]}
    path.write_text(json.dumps(kept))
    unit = read_unit(path)
    assert unit is not None and unit.seed == 1 and np.isnan(unit.probabilities[1])
    path.write_text(json.dumps({**kept, "options": {**RECIPES["scratch"].options, "lr": 1e-3}}))
    assert read_unit(path) is None


def simulated(draw: np.random.Generator, seeds: int) -> tuple[dict[str, list[Unit]], np.ndarray]:
    """Units of two recipes that are as good as each other, each seed better or worse by chance."""
    labels = (np.arange(400) % 5 < 2).astype(np.int8)
    patches = labels + draw.normal(0, 1, 400)
    units: dict[str, list[Unit]] = {}
    for name, count in ((BASE, 3), ("scratch", 3), ("original, D4", seeds)):
        units[name] = []
        for seed in range(count):
            scores = patches + draw.normal(0, 0.3, 400) + draw.normal(0, 0.3) * labels
            units[name].append(Unit(name, seed, 1 / (1 + np.exp(-scores))))
    return units, labels


@pytest.mark.parametrize("seeds", [1, 3])
def test_an_interval_of_one_seed_or_of_three_holds_no_difference_where_there_is_none(seeds: int) -> None:
    draw, held = np.random.default_rng(seeds), []
    for _ in range(200):
        found = compare_all(*simulated(draw, seeds))
        one = found["original, D4"]
        held.append(abs(np.mean(one.differences)) < compute_half_widths(found)["original, D4"])
    assert np.mean(held) >= 0.93  # a binomial's error is 0.015; seed and patch noise overlap, which widens it


def test_one_seed_alone_is_trusted_as_far_as_its_patches_go() -> None:
    halves = compute_half_widths({"original, D4": PairedDifferences(np.array([0.01]), 0.0001)})
    assert halves["original, D4"] == pytest.approx(1.96 * 0.01, rel=1e-3)


def test_patches_that_one_of_two_did_not_predict_are_left_out_of_their_difference() -> None:
    units, labels = simulated(np.random.default_rng(0), 1)
    half = units["original, D4"][0].probabilities.copy()
    half[200:] = np.nan
    units["original, D4"] = [Unit("original, D4", 0, half)]
    whole = {name: [Unit(name, one.seed, one.probabilities[:200]) for one in units[name]] for name in units}
    assert compare_all(units, labels)["original, D4"].differences == pytest.approx(
        compare_all(whole, labels[:200])["original, D4"].differences
    )

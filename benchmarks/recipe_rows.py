"""Define the recipes that are compared, their cost, and the files of their results."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import ROOT
from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.files import read_json
from claris_kaggle.core.presets import _DENSENET_OPTIONS, _PRESETS
from claris_kaggle.models.factory import create_model

RESULTS = ROOT / "docs" / "recipes"
BASE, TWICE = "original", "original, twice"


class Recipe(NamedTuple):
    """A preset and the options that differ from it."""

    description: str
    preset: str = "original"
    changes: dict[str, Any] = {}

    @property
    def options(self) -> dict[str, Any]:
        """Return the options that differ from the defaults. Saved results are valid only for the same options."""
        return {**_PRESETS[self.preset], **self.changes}

    @property
    def config(self) -> TrainConfig:
        """Return all training options."""
        return TrainConfig(**{**self.options, "preset": self.preset, "weights": "none"})

    @property
    def cost(self) -> float:
        """Return the GFLOP per training patch over all epochs, forward and backward; a multiply-add counts as two."""
        config = self.config
        return config.epochs * count_training_gflop(config.model, config.side, stem=config.stem, tail=config.tail)


@functools.cache
def count_training_gflop(name: str, side: int, *, stem: str, tail: str) -> float:
    """Return the GFLOP of one image of this size, forward and backward."""
    model = create_model(name, stem=stem, tail=tail)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 3, side, side)).sum().backward()
    return float(counter.get_total_flops()) / 2 / 1e9


COARSE = {key: _PRESETS["scratch"][key] for key in _DENSENET_OPTIONS}
SMALL = {"stem": "pool", "tail": "pool", "resolution": 48, "epochs": 24}
RECIPES = {
    "original": Recipe("the `original` preset"),
    "scratch": Recipe("the `scratch` preset", "scratch"),
    "original, twice": Recipe("the `original` preset at twice the compute", "original", {"epochs": 12}),
    "scratch, twice": Recipe("the `scratch` preset at twice the compute", "scratch", {"epochs": 40}),
    # One change at a time, each at the compute of six epochs of the original.
    "original, D4": Recipe("D4 instead of flips and 20 degrees", "original", {"geometry": "d4"}),
    "original, one-cycle": Recipe("one-cycle, peak 1e-3", "original", {"schedule": "onecycle", "lr": 1e-3}),
    "original, cosine": Recipe("cosine schedule from 1e-3", "original", {"schedule": "cosine", "lr": 1e-3}),
    "original, decay": Recipe("weight decay 0.05", "original", {"weight_decay": 0.05}),
    "original, average": Recipe("EMA 0.99", "original", {"ema": 0.99}),
    "original, colour": Recipe("colour augmentation 0.3", "original", {"color": 0.3}),
    "original, stain": Recipe("H&E stain augmentation 0.05", "original", {"stain": 0.05}),
    "original, both colours": Recipe("colour 0.3 and stain 0.05", "original", {"color": 0.3, "stain": 0.05}),
    "original, smoothing": Recipe("label smoothing 0.05", "original", {"label_smoothing": 0.05}),
    "original, even weights": Recipe("equal class weights", "original", {"class_weight": 1.0}),
    "original, batch 16": Recipe("batch size 16", "original", {"batch_size": 16}),
    "original, half": Recipe("patches downsampled to 48", "original", {"epochs": 24, "resolution": 48}),
    "original, p4m": Recipe("p4m-equivariant network, at 93 pixels", "original", {"equivariance": "p4m", "crop": 93}),
    "original, mixup": Recipe("mixup 0.4", "original", {"mixup": 0.4}),
    "original, coarse": Recipe("the poolings of `scratch`", "original", {**COARSE, "epochs": 20}),
    # One change at a time from the scratch preset.
    "scratch, p4m": Recipe("p4m-equivariant network, at 95 pixels", "scratch", {"equivariance": "p4m", "crop": 95}),
    "scratch, no colour": Recipe("without colour augmentation", "scratch", {"color": 0.0}),
    "scratch, no average": Recipe("without EMA", "scratch", {"ema": 0.0}),
    "scratch, stain": Recipe("H&E stain augmentation 0.05 added", "scratch", {"stain": 0.05}),
    "scratch, 1e-3": Recipe("one-cycle, peak 1e-3", "scratch", {"lr": 1e-3}),
    "scratch, batch 16": Recipe("batch size 16", "scratch", {"batch_size": 16}),
    "scratch at 48": Recipe("patches downsampled to 48, all poolings", "scratch", SMALL),
    "scratch at 48, tail": Recipe(
        "the same without the last pooling", "scratch", {**SMALL, "tail": "no-pool", "epochs": 21}
    ),
}


class Unit(NamedTuple):
    """The results of one recipe and seed: a probability for each patch; NaN for patches of folds that were not run."""

    name: str
    seed: int
    probabilities: NDArray[np.float64]


def read_unit(path: Path) -> Unit | None:
    """Return the unit that is saved in the file, or None if the options of the recipe have changed since."""
    saved = read_json(path)
    if saved["name"] not in RECIPES or saved["options"] != RECIPES[saved["name"]].options:
        return None
    return Unit(saved["name"], saved["seed"], np.array(saved["probabilities"], dtype=np.float64))


def unit_path(name: str, seed: int) -> Path:
    """Return the file of a unit."""
    return RESULTS / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}.json"

"""The recipes that are compared, what each costs, and where its figures are kept."""

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

KEPT = ROOT / "docs" / "recipes"
BASE, TWICE = "original", "original, twice"


class Recipe(NamedTuple):
    """A preset and what is other than in it."""

    about: str
    preset: str = "original"
    changes: dict[str, Any] = {}

    @property
    def options(self) -> dict[str, Any]:
        """What is other than in a plain run, kept with the figures: when it changes they are another recipe's."""
        return {**_PRESETS[self.preset], **self.changes}

    @property
    def config(self) -> TrainConfig:
        """All its training options."""
        return TrainConfig(**{**self.options, "preset": self.preset, "weights": "none"})

    @property
    def cost(self) -> float:
        """Operations for each training patch over all epochs, forward and backward, in 1e9 (two a multiply-add)."""
        config = self.config
        return config.epochs * one_image(config.model, config.side, stem=config.stem, tail=config.tail)


@functools.cache
def one_image(name: str, side: int, *, stem: str, tail: str) -> float:
    """Of one image of that side, forward and backward, in 1e9 floating-point operations."""
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
    """One recipe under one seed: a probability for each patch, NaN for those of folds that were left out."""

    name: str
    seed: int
    probabilities: NDArray[np.float64]


def read_unit(path: Path) -> Unit | None:
    """The unit whose figures are in the file; None where they are another recipe's than the one of that name now."""
    one = read_json(path)
    if one["name"] not in RECIPES or one["options"] != RECIPES[one["name"]].options:
        return None
    return Unit(one["name"], one["seed"], np.array(one["probabilities"], dtype=np.float64))


def kept_at(name: str, seed: int) -> Path:
    """Where a unit's figures are kept."""
    return KEPT / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}.json"

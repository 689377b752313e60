"""Recipes by name: the values of all training options that make one, each of which is a plain flag as well.

`docs/recipes.md` has what was measured of each, and what was tried and did not help.
"""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # The science-fair project's notebook: Adam at a constant 1e-4, class weights of 1.0 and 1.5, flips and
    # rotations by up to 20 degrees, ImageNet's normalisation. Its batch was 128 of 176,020 patches.
    "original": {
        "lr": 1e-4,
        "schedule": "constant",
        "class_weight": 1.5,
        "geometry": "flips",
        "color": 0.0,
        "normalise": "imagenet",
    },
    # From random weights and few patches: four times the epochs at half the resolution for the same compute, decoupled
    # decay (Loshchilov and Hutter 2019), a higher peak (Smith and Topin 2018), a moving average of the weights, and
    # little change of colour: the stain is worth more as a cue than as something to be blind to.
    "scratch": {
        "epochs": 24,
        "resolution": 48,
        "lr": 2e-3,
        "weight_decay": 0.05,
        "ema": 0.99,
        "color": 0.3,
        "normalise": "patches",
    },
    # ImageNet weights need tuning only, with the mean and deviation that they were made with.
    "pretrained": {"lr": 1e-4, "color": 1.0, "normalise": "imagenet"},
}


def choose_preset(asked: str, *, pretrained: bool) -> str:
    """What `auto` means: by whether there are starting weights."""
    if asked != "auto":
        return asked
    return "pretrained" if pretrained else "scratch"

"""Recipes by name: the values of all training options that make one, each of which is a plain flag as well.

`docs/recipes.md` has what was measured of each, and what was tried and did not help.
"""

from __future__ import annotations

from typing import Any

_PRESETS: dict[str, dict[str, Any]] = {
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
    # From random weights and few patches. A first pooling over 4 x 4 sees every pixel at a quarter of the compute,
    # which pays for three times the epochs; without the last pooling a patch still ends in 3 x 3 cells. Decoupled decay
    # (Loshchilov and Hutter 2019), a higher peak (Smith and Topin 2018), a moving average of the weights, and little
    # change of colour: the stain is worth more as a cue than as something to be blind to.
    "scratch": {
        "epochs": 20,
        "stem": "pool4",
        "tail": "no-pool",
        "lr": 2e-3,
        "weight_decay": 0.05,
        "ema": 0.99,
        "color": 0.3,
        "normalise": "patches",
    },
    # ImageNet weights need tuning only, with the mean and deviation that they were made with.
    "pretrained": {"lr": 1e-4, "color": 1.0, "normalise": "imagenet"},
}


# What only a DenseNet can have; another network's recipe goes without.
_DENSENET_OPTIONS = ("stem", "tail")


def _preset_for(name: str, model: str) -> dict[str, Any]:
    """The options that the preset sets for that network.

    >>> "stem" in _preset_for("scratch", "densenet121"), "stem" in _preset_for("scratch", "resnet18")
    (True, False)
    """
    densenet = model.startswith("densenet")
    return {key: value for key, value in _PRESETS[name].items() if densenet or key not in _DENSENET_OPTIONS}


def _choose_preset(asked: str, *, pretrained: bool) -> str:
    """What `auto` means: by whether there are starting weights."""
    if asked != "auto":
        return asked
    return "pretrained" if pretrained else "scratch"

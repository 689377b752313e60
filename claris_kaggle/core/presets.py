"""Named recipes: the values of all training options. Each option is also a flag.

`docs/recipes.md` has the measured results of each recipe, and the options that did not help.
"""

from __future__ import annotations

_PRESETS: dict[str, dict[str, object]] = {
    # The notebook of the original science-fair project: Adam with a constant learning rate of 1e-4, class weights
    # 1.0 and 1.5, flips and rotations up to 20 degrees, ImageNet normalisation, batch size 128 on 176,020 patches.
    "original": {
        "lr": 1e-4,
        "schedule": "constant",
        "class_weight": 1.5,
        "geometry": "flips",
        "color": 0.0,
        "normalise": "imagenet",
    },
    # Random weights and few patches. A first pooling of 4 x 4 uses every pixel at a quarter of the compute, so that
    # three times the epochs are affordable. Without the last pooling the last feature map still has 3 x 3 cells.
    # Decoupled weight decay (Loshchilov and Hutter 2019), a higher peak learning rate (Smith and Topin 2018), an EMA of
    # the weights. Colour augmentation is weak, because the stain is a useful cue.
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
    # Published weights, fine-tuned as in the published solutions with a private score of 0.975 or more: enlarged
    # patches, ten epochs or more, averaged weights. The peak learning rate depends on the number of steps (`lr` 0). The
    # EMA decay increases during the first steps, so that one value suits 300 steps and 14,000.
    "pretrained": {
        "epochs": 10,
        "resolution": 192,
        "lr": 0.0,
        "weight_decay": 0.05,
        "ema": 0.999,
        "color": 0.5,
        "normalise": "model",
    },
}


# Options that only a DenseNet has. Presets of other networks do not set them.
_DENSENET_OPTIONS = ("stem", "tail")


def _preset_for(name: str, model: str) -> dict[str, object]:
    """Return the options that the preset sets for this network.

    >>> "stem" in _preset_for("scratch", "densenet121"), "stem" in _preset_for("scratch", "resnet18")
    (True, False)
    """
    densenet = model.startswith("densenet")
    return {key: value for key, value in _PRESETS[name].items() if densenet or key not in _DENSENET_OPTIONS}


def _choose_preset(name: str, *, pretrained: bool) -> str:
    """Return the preset; `auto` is `pretrained` with starting weights and `scratch` without."""
    if name != "auto":
        return name
    return "pretrained" if pretrained else "scratch"

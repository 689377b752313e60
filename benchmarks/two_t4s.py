"""Estimate the hours of two T4s for the whole competition with `models.cost`. Nothing is measured.

python -m benchmarks.two_t4s
"""

from __future__ import annotations

from claris_kaggle.models.cost import NetworkCost, network_cost

# The network, and what the layers of DenseNet-121 at 96 px read and write in fp16, in bytes an image.
MODEL, SIDE = "densenet121", 96
TRAFFIC = {"train": 102e6, "predict": 40e6}
EPOCH, FOLD, TRAIN, TEST, FOLDS, EPOCHS, VIEWS = 176_020, 44_005, 220_025, 57_458, 5, 6, 8
COMPETITION = {"train_patches": TRAIN, "predict_patches": TEST}
ORIGINAL, GOAL = 565.0, 75.0  # seconds an epoch of the original; minutes for all


def minutes(cost: NetworkCost) -> dict[str, float]:
    """Minutes for each part of the whole at the estimated rates."""
    training, inference = cost.training_rate(), cost.prediction_rate()
    seconds = {
        "training": FOLDS * EPOCHS * EPOCH / training,
        "a check after each epoch": FOLDS * EPOCHS * FOLD / inference,
        "OOF, eight views": TRAIN * VIEWS / inference,
        "test, eight views, five folds": FOLDS * TEST * VIEWS / inference,
    }
    return {name: value / 60 for name, value in seconds.items()}


def prediction() -> dict[str, str]:
    """The figures by what they are."""
    cost = network_cost(MODEL, SIDE)
    parts = minutes(cost)
    total, original = sum(parts.values()), FOLDS * EPOCHS * ORIGINAL / 60
    listed = ", ".join(f"{name} {value:.0f}" for name, value in parts.items())
    return {
        f"two T4s, an epoch of {EPOCH:,} images (an estimate)":
            f"{EPOCH / cost.training_rate():.0f} s; the original took {ORIGINAL:.0f}",
        "two T4s, five folds of six epochs, OOF and test with eight views (an estimate)":
            f"{total:.0f} min ({listed}); the original's training loop alone would take {original:.1f}",
        f"under {GOAL:.0f} min": f"if the rates are at least {total / GOAL:.0%} of the estimated ones",
    }  # fmt: skip


def assumptions() -> str:
    """Return the assumptions of the estimate."""
    cost = network_cost(MODEL, SIDE)
    return (
        f"The estimate for two T4s takes {cost.training_rate():,.0f} training and {cost.prediction_rate():,.0f} "
        "inference images/s on both together, from timm's published speeds on an RTX 3090 scaled by memory bandwidth "
        "(`models/cost.py`). A pack of files that are not in memory comes on top. Not measured."
    )


if __name__ == "__main__":
    for name, text in prediction().items():
        print(f"{name}: {text}")
    print(assumptions())

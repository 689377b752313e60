"""Estimate the hours of two T4s for the whole competition with `models.cost`. Nothing is measured.

python -m benchmarks.two_t4s
"""

from __future__ import annotations

from claris_kaggle.models.cost import NetworkCost, network_cost

# The network, and the bytes per image that the layers of DenseNet-121 at 96 px read and write in fp16.
MODEL, SIDE = "densenet121", 96
TRAFFIC = {"train": 102e6, "predict": 40e6}
EPOCH, FOLD, TRAIN, TEST, FOLDS, EPOCHS, VIEWS = 176_020, 44_005, 220_025, 57_458, 5, 6, 8
COMPETITION = {"train_patches": TRAIN, "predict_patches": TEST}
ORIGINAL_EPOCH_SECONDS, GOAL_MINUTES = 565.0, 75.0  # an epoch of the original notebook; the goal for everything


def estimate_minutes(cost: NetworkCost) -> dict[str, float]:
    """Return the minutes of each part of the pipeline at the estimated rates."""
    training, inference = cost.training_rate(), cost.prediction_rate()
    seconds = {
        "training": FOLDS * EPOCHS * EPOCH / training,
        "a validation after each epoch": FOLDS * EPOCHS * FOLD / inference,
        "OOF, eight views": TRAIN * VIEWS / inference,
        "test, eight views, five folds": FOLDS * TEST * VIEWS / inference,
    }
    return {name: value / 60 for name, value in seconds.items()}


def estimate_facts() -> dict[str, str]:
    """Return the estimates and their descriptions."""
    cost = network_cost(MODEL, SIDE)
    parts = estimate_minutes(cost)
    total, original = sum(parts.values()), FOLDS * EPOCHS * ORIGINAL_EPOCH_SECONDS / 60
    listing = ", ".join(f"{name} {value:.0f}" for name, value in parts.items())
    return {
        f"two T4s, an epoch of {EPOCH:,} images (an estimate)":
            f"{EPOCH / cost.training_rate():.0f} s; the original took {ORIGINAL_EPOCH_SECONDS:.0f}",
        "two T4s, five folds of six epochs, OOF and test with eight views (an estimate)":
            f"{total:.0f} min ({listing}); the original's training loop alone would take {original:.1f}",
        f"under {GOAL_MINUTES:.0f} min": f"if the rates are at least {total / GOAL_MINUTES:.0%} of the estimated ones",
    }  # fmt: skip


def describe_assumptions() -> str:
    """Return the assumptions of the estimate."""
    cost = network_cost(MODEL, SIDE)
    return (
        f"The estimate for two T4s assumes {cost.training_rate():,.0f} training and {cost.prediction_rate():,.0f} "
        "inference images/s on both together, from timm's published speeds on an RTX 3090 scaled by memory bandwidth "
        "(`models/cost.py`). The time to pack the files is not included. Not measured."
    )


if __name__ == "__main__":
    for name, text in estimate_facts().items():
        print(f"{name}: {text}")
    print(describe_assumptions())

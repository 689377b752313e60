"""What two T4s should take for the whole competition: a prediction from assumed rates, not measured.

python -m benchmarks.two_t4s
"""

from __future__ import annotations

# Images a second of DenseNet-121 at 96 px in fp16 on two cards together, least and most.
TRAINING, INFERENCE = (1450.0, 2900.0), (4600.0, 9200.0)
# A card's bytes a second by its data sheet; what two gain over one; bytes an image that the layers read and write.
BANDWIDTH, SCALING = 320e9, 1.8
TRAFFIC = {"train": 102e6, "predict": 40e6}
EPOCH, FOLD, TRAIN, TEST, FOLDS, EPOCHS, VIEWS = 176_020, 44_005, 220_025, 57_458, 5, 6, 8
ORIGINAL, GOAL = 565.0, 75.0  # seconds an epoch of the original; minutes for all


def minutes(training: float, inference: float) -> dict[str, float]:
    """Minutes for each part of the whole at these rates."""
    seconds = {
        "training": FOLDS * EPOCHS * EPOCH / training,
        "a check after each epoch": FOLDS * EPOCHS * FOLD / inference,
        "OOF, eight views": TRAIN * VIEWS / inference,
        "test, eight views, five folds": FOLDS * TEST * VIEWS / inference,
    }
    return {name: value / 60 for name, value in seconds.items()}


def share(part: str, rate: float) -> float:
    """The share of both cards' bandwidth that the rate takes."""
    return rate * TRAFFIC[part] / (BANDWIDTH * SCALING)


def prediction() -> dict[str, str]:
    """The figures by what they are."""
    slow, fast = (minutes(train, infer) for train, infer in zip(TRAINING, INFERENCE, strict=True))
    ends = sum(fast.values()), sum(slow.values())
    original = FOLDS * EPOCHS * ORIGINAL / 60
    parts = ", ".join(f"{name} {fast[name]:.0f} to {slow[name]:.0f}" for name in slow)
    return {
        f"two T4s, an epoch of {EPOCH:,} images (an estimate)":
            f"{EPOCH / TRAINING[1]:.0f} to {EPOCH / TRAINING[0]:.0f} s; the original took {ORIGINAL:.0f}",
        "two T4s, five folds of six epochs, OOF and test with eight views (an estimate)":
            f"{ends[0]:.0f} to {ends[1]:.0f} min ({parts}); the original's training loop alone would take "
            f"{original:.1f}",
        f"under {GOAL:.0f} min": f"from {ends[1] / GOAL - 1:.0%} above the lower rates on",
    }  # fmt: skip


def assumptions() -> str:
    """What the prediction rests on."""
    shares = {
        part: [share(part, rate) for rate in rates] for part, rates in zip(TRAFFIC, (TRAINING, INFERENCE), strict=True)
    }
    text = " and ".join(f"{low:.0%} to {high:.0%} to {part}" for part, (low, high) in shares.items())
    return (
        f"The estimate for two T4s assumes {TRAINING[0]:,.0f} to {TRAINING[1]:,.0f} training and "
        f"{INFERENCE[0]:,.0f} to {INFERENCE[1]:,.0f} inference images/s on both together: of "
        f"{BANDWIDTH / 1e9:.0f} GB/s a card, times {SCALING} for two, {text}, at the traffic of DenseNet-121 in "
        "fp16, layer by layer. A pack of files that are not in memory comes on top. Not measured."
    )


if __name__ == "__main__":
    for name, text in prediction().items():
        print(f"{name}: {text}")
    print(assumptions())

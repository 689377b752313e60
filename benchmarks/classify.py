"""Windows a second of `claris classify` on a 384 x 384 image: five small networks, by views, folds and stride.

The first row computes as version 0.1.0 did: batch norms of their own, one block after another.

python -m benchmarks.classify [--threads 1] [--rounds 3] [--model test_resnet] [--side 384]
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.timing import QUICK, Result, interleave, option, publish, rate_of
from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.errors import format_count
from claris_kaggle.data.arrays import Pixels
from claris_kaggle.inference.fold_models import FoldModels, predict_ensemble
from claris_kaggle.inference.forward import block_size
from claris_kaggle.models.factory import create_model, fuse_batch_norm, fuse_every_batch_norm
from claris_kaggle.serving.classify import ClassifyJob, classify_image
from claris_kaggle.serving.images import _crop_window, _window_starts

FOLDS, VIEWS, SIDE, STRIDE = 5, 8, int(option("--side", "384")), 32
if QUICK:
    FOLDS, VIEWS, SIDE = 2, 1, 128


def make_folds(name: str) -> list[nn.Module]:
    """Networks whose norms have statistics of their own, as after training."""
    models = [create_model(name, seed) for seed in range(FOLDS)]
    generator = torch.Generator().manual_seed(0)
    for norm in (part for model in models for part in model.modules() if isinstance(part, nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.05, generator=generator)  # type: ignore[union-attr]
        norm.running_var.uniform_(1, 1.2, generator=generator)  # type: ignore[union-attr]
    return models


def ensemble(name: str, models: list[nn.Module]) -> FoldModels:
    """The networks as those of a run."""
    ready = [one.eval().to(memory_format=torch.channels_last) for one in models]  # type: ignore[call-overload]
    config = TrainConfig(model=name, weights="none", precision="fp32")
    return FoldModels("bench", config, dict(enumerate(ready)), {})


def one_block_after_another(trained: FoldModels, pixels: Pixels) -> NDArray[np.float32]:
    """The probabilities of the windows as version 0.1.0 computed them."""
    tops, lefts = (_window_starts(side, STRIDE).tolist() for side in pixels.shape[:2])
    places = [(top, left) for top in tops for left in lefts]
    size, parts = block_size(torch.device("cpu")), []
    for begin in range(0, len(places), size):
        windows = np.stack([_crop_window(pixels, *place) for place in places[begin : begin + size]])
        parts.append(predict_ensemble(trained, windows, views=VIEWS).probabilities)
    return np.concatenate(parts)


def main() -> None:
    """Measure, compare the answers, print and keep."""
    threads, rounds = int(option("--threads", "1")), int(option("--rounds", "3"))
    name = option("--model", "test_resnet")
    torch.set_num_threads(threads)
    models = make_folds(name)
    before = ensemble(name, [fuse_batch_norm(one) for one in models])
    trained = ensemble(name, [fuse_every_batch_norm(one) for one in models])
    one_fold = dataclasses.replace(trained, models={0: trained.models[0]})
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    windows, found = len(_window_starts(SIDE, STRIDE)) ** 2, {}

    def classify(key: str, folds: FoldModels, views: int, stride: int = STRIDE) -> None:
        job = ClassifyJob(views=views, stride=stride)
        heat = classify_image(folds, pixels, key, job, on_batch=lambda done: None).heat
        assert heat is not None
        found[key] = heat.probabilities.ravel()

    first = f"{FOLDS} folds, {VIEWS} views, as in 0.1.0"
    now = f"{FOLDS} folds, {VIEWS} views"
    contenders = {
        first: rate_of(windows, lambda: found.update({first: one_block_after_another(before, pixels)})),
        now: rate_of(windows, lambda: classify(now, trained, VIEWS)),
        f"{FOLDS} folds, --views 1": rate_of(windows, lambda: classify("views", trained, 1)),
        "--fast (windows of the same area)": rate_of(windows, lambda: classify("fast", one_fold, 1, 64)),
    }
    rates = interleave(contenders, rounds, 0)
    difference = float(np.abs(found[first] - found[now]).max())
    spread = f"{found[now].min():.3f} to {found[now].max():.3f}"
    facts = {"probabilities": spread, "largest difference of a probability": f"{difference:.1e}"}
    notes = [
        "`--fast` computes one fold, one view and a quarter of the windows. Its rate counts the windows that the "
        "default has for the same area."
    ]
    title = f"classify, {name}, {SIDE} x {SIDE} pixels, {windows} windows, {format_count(threads, 'thread')}"
    publish(Result("classify", title, "windows/s", rates, facts, notes))


if __name__ == "__main__":
    main()

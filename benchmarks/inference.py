"""Prediction with eight views against eight plain passes of the same network over tensors at hand.

python -m benchmarks.inference
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.patches import Bench, bench_patches
from benchmarks.timing import QUICK, THREADS, Result, interleave, publish, rate_of
from benchmarks.training import ALONE, new_learner
from claris_kaggle.core.config import TrainConfig
from claris_kaggle.data.augment import to_input
from claris_kaggle.data.batches import EpochBatches, TrainSet
from claris_kaggle.data.d4 import view
from claris_kaggle.inference.forward import predict_ids
from claris_kaggle.models.factory import fuse_batch_norm
from claris_kaggle.training.learner import _train_epoch

PATCHES, BATCH, TRAINED, UNSEEN = (8, 4, 16, 32) if QUICK else (96, 32, 600, 600)


def train_a_little(bench: Bench) -> torch.nn.Module:
    """A network that has learnt something, so that an AUC means something."""
    learner = new_learner("bf16")
    trainset = TrainSet(bench.pack, bench.trainset.ids[:TRAINED], bench.trainset.labels[:TRAINED])
    for epoch in range(3):
        batches = EpochBatches(trainset, learner.config, epoch=epoch, rank=0, world_size=1)
        learner.step = 0
        _train_epoch(learner, batches, 0, lambda rows: "")
    return learner.model.eval()


def plain_passes(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Eight passes in the usual memory order, all at once in float32; the mean probability."""
    total = torch.zeros(len(images))
    with torch.inference_mode():
        for number in range(8):
            turned = to_input(view(images, number), "patches").contiguous()
            for start in range(0, len(turned), BATCH):
                total[start : start + BATCH] += model(turned[start : start + BATCH]).softmax(1)[:, 1]
    return total / 8


def main() -> None:
    """Compare, print and keep."""
    torch.set_num_threads(THREADS)
    with bench_patches() as bench:
        model = train_a_little(bench)
        plain = type(model)  # the same network, in the usual memory order
        contiguous = new_learner("fp32").model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        contiguous.load_state_dict(model.state_dict())
        contiguous.eval()
        assert isinstance(contiguous, plain)
        ids = bench.trainset.ids[-PATCHES:]
        images = torch.from_numpy(bench.pack.pixels[bench.pack.rows(ids)])
        configs = {name: TrainConfig(weights="none", precision=name, color=0.3) for name in ("fp32", "bf16")}

        def ours(network: torch.nn.Module, precision: str) -> Callable[[], float]:
            return rate_of(PATCHES, lambda: predict_ids(network, bench.pack, ids, ALONE, configs[precision], views=8))

        folded = fuse_batch_norm(model)
        rates = interleave(
            {
                "eight plain passes, contiguous, inference mode": rate_of(
                    PATCHES, lambda: plain_passes(contiguous, images)
                ),
                "claris predict without folding": ours(model, "fp32"),
                "claris predict": ours(folded, "fp32"),
                "claris predict --precision bf16": ours(folded, "bf16"),
            },
            rounds=5,
        )
        difference = np.abs(
            plain_passes(contiguous, images).numpy()
            - predict_ids(folded, bench.pack, ids, ALONE, configs["fp32"], views=8)
        ).max()
        unseen, labels = bench.trainset.ids[-UNSEEN:], bench.trainset.labels[-UNSEEN:]
        aucs = {
            name: roc_auc_score(labels, predict_ids(folded, bench.pack, unseen, ALONE, config, views=8))
            for name, config in configs.items()
        }
    facts = {
        "largest difference of a probability between fp32 and plain passes": f"{difference:.1e}",
        f"AUC over {len(labels)} patches": f"fp32 {aucs['fp32']:.5f}, bf16 {aucs['bf16']:.5f}, "
        f"difference {abs(aucs['fp32'] - aucs['bf16']):.1e}",
    }
    title = f"eight views, DenseNet-121, batch {BATCH}, {THREADS} threads, {bench.about}"
    publish(Result("inference", title, "patches/s", rates, facts))


if __name__ == "__main__":
    main()

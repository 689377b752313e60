"""Compare `claris predict` with eight views to eight forward passes of the same network in a simple loop.

python -m benchmarks.inference
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.patches import BenchmarkPatches, prepare_patches
from benchmarks.timing import QUICK, THREADS, Result, interleave, publish, rate_of
from benchmarks.training import ALONE, new_learner
from claris_kaggle.core.config import TrainConfig
from claris_kaggle.data.augment import to_input
from claris_kaggle.data.batches import EpochBatches, TrainSet
from claris_kaggle.data.d4 import view
from claris_kaggle.inference.forward import predict_ids
from claris_kaggle.models.factory import fuse_batch_norm
from claris_kaggle.training.learner import _train_epoch

PATCHES, BATCH, TRAIN_PATCHES, UNSEEN_PATCHES = (8, 4, 16, 32) if QUICK else (96, 32, 600, 600)


def train_network(patches: BenchmarkPatches) -> torch.nn.Module:
    """Return a network that was trained for three epochs, so that its AUC is better than chance."""
    learner = new_learner("bf16")
    ids, labels = patches.trainset.ids[:TRAIN_PATCHES], patches.trainset.labels[:TRAIN_PATCHES]
    trainset = TrainSet(patches.pack, ids, labels)
    for epoch in range(3):
        batches = EpochBatches(trainset, learner.config, epoch=epoch, rank=0, world_size=1)
        learner.step = 0
        _train_epoch(learner, batches, 0, lambda rows: "")
    return learner.model.eval()


def predict_view_by_view(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the mean probability of eight views, from float32 forward passes in contiguous memory format."""
    total = torch.zeros(len(images))
    with torch.inference_mode():
        for number in range(8):
            inputs = to_input(view(images, number), "patches").contiguous()
            for start in range(0, len(inputs), BATCH):
                total[start : start + BATCH] += model(inputs[start : start + BATCH]).softmax(1)[:, 1]
    return total / 8


def main() -> None:
    """Run the benchmark, print the result and save it."""
    torch.set_num_threads(THREADS)
    with prepare_patches() as patches:
        model = train_network(patches)
        contiguous = new_learner("fp32").model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        contiguous.load_state_dict(model.state_dict())
        contiguous.eval()
        ids = patches.trainset.ids[-PATCHES:]
        images = torch.from_numpy(patches.pack.pixels[patches.pack.rows(ids)])
        configs = {name: TrainConfig(weights="none", precision=name, color=0.3) for name in ("fp32", "bf16")}

        def make_contender(network: torch.nn.Module, precision: str) -> Callable[[], float]:
            return rate_of(PATCHES, lambda: predict_ids(network, patches.pack, ids, ALONE, configs[precision], views=8))

        fused = fuse_batch_norm(model)
        rates = interleave(
            {
                "eight plain passes, contiguous, inference mode": rate_of(
                    PATCHES, lambda: predict_view_by_view(contiguous, images)
                ),
                "claris predict without folding": make_contender(model, "fp32"),
                "claris predict": make_contender(fused, "fp32"),
                "claris predict --precision bf16": make_contender(fused, "bf16"),
            },
            rounds=5,
        )
        difference = np.abs(
            predict_view_by_view(contiguous, images).numpy()
            - predict_ids(fused, patches.pack, ids, ALONE, configs["fp32"], views=8)
        ).max()
        unseen, labels = patches.trainset.ids[-UNSEEN_PATCHES:], patches.trainset.labels[-UNSEEN_PATCHES:]
        aucs = {
            name: roc_auc_score(labels, predict_ids(fused, patches.pack, unseen, ALONE, config, views=8))
            for name, config in configs.items()
        }
    facts = {
        "largest difference of a probability between fp32 and plain passes": f"{difference:.1e}",
        f"AUC over {len(labels)} patches": f"fp32 {aucs['fp32']:.5f}, bf16 {aucs['bf16']:.5f}, "
        f"difference {abs(aucs['fp32'] - aucs['bf16']):.1e}",
    }
    title = f"eight views, DenseNet-121, batch {BATCH}, {THREADS} threads, {patches.description}"
    publish(Result("inference", title, "patches/s", rates, facts))


if __name__ == "__main__":
    main()

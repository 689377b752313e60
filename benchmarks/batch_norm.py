"""Measure the effect of batch statistics per rank on gradients and AUC, and the cost of synchronised batch norm.

python -m benchmarks.batch_norm
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.inference import train_network
from benchmarks.patches import BenchmarkPatches, prepare_patches
from benchmarks.timing import QUICK, THREADS, Result, publish
from benchmarks.training import ALONE, MODEL
from claris_kaggle.core.config import TrainConfig
from claris_kaggle.data.augment import to_input
from claris_kaggle.data.batches import Batch, EpochBatches, TrainSet
from claris_kaggle.evaluation.metrics import auc
from claris_kaggle.inference.forward import predict_ids
from claris_kaggle.models.factory import create_model
from claris_kaggle.training.learner import _Learner, _learning_rate

GLOBAL_BATCH, RANK_BATCHES, SAMPLES = 128, (64, 32, 16), 4
TRAIN_PATCHES, EPOCHS, SEEDS, TRAINED_RANK_BATCHES = 640, 6, 3, (128, 64, 16)
if QUICK:
    GLOBAL_BATCH, RANK_BATCHES, SAMPLES = 8, (4,), 1
    TRAIN_PATCHES, EPOCHS, SEEDS, TRAINED_RANK_BATCHES = 8, 1, 1, (8, 4)


def compute_gradient(model: nn.Module, images: Tensor, labels: Tensor, ranks: int) -> Tensor:
    """Return the mean of the gradients of the ranks' parts of a batch as one vector, as DDP computes it."""
    model.train()
    model.zero_grad()
    for part, targets in zip(images.chunk(ranks), labels.chunk(ranks), strict=True):
        (nn.functional.cross_entropy(model(part), targets) / ranks).backward()
    return torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None]).clone()


def compare_gradients(patches: BenchmarkPatches) -> dict[str, list[float]]:
    """Return the cosines between the gradient of the complete batch and that of each batch size per rank."""
    cosines: dict[str, list[float]] = {f"{size} per rank": [] for size in (GLOBAL_BATCH, *RANK_BATCHES)}
    model = train_network(patches)
    for seed in range(SAMPLES):
        rows = torch.randperm(600, generator=torch.Generator().manual_seed(seed))[:GLOBAL_BATCH].numpy()
        ids = [patches.trainset.ids[row] for row in rows]
        images = to_input(torch.from_numpy(patches.pack.pixels[patches.pack.rows(ids)]), "patches")
        labels = torch.from_numpy(patches.trainset.labels[rows])
        complete = compute_gradient(model, images, labels, 1)
        for size in (GLOBAL_BATCH, *RANK_BATCHES):
            by_rank = compute_gradient(model, images, labels, GLOBAL_BATCH // size)
            cosines[f"{size} per rank"].append(torch.cosine_similarity(complete, by_rank, dim=0).item())
    return cosines


def simulate_step(learner: _Learner, batch: Batch, rank_batch: int, lr: float) -> None:
    """Make the training step of several ranks in one process.

    The part of each rank has its own batch statistics. Only those of the first rank update the running statistics.
    """
    images = to_input(batch.images, learner.config.normalise, batch.colors)
    learner.optimizer.param_groups[0]["lr"] = lr
    learner.optimizer.zero_grad(set_to_none=True)
    learner.model.train()
    parts = zip(images.split(rank_batch), batch.labels.split(rank_batch), strict=True)
    for rank, (part, targets) in enumerate(parts):
        for norm in learner.model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 0.0 if rank else 0.1
        with torch.autocast("cpu", torch.bfloat16):
            logits = learner.model(part)
        (nn.functional.cross_entropy(logits.float(), targets, reduction="sum") / len(images)).backward()
    learner.optimizer.step()


def train_and_score(patches: BenchmarkPatches, rank_batch: int, seed: int) -> float:
    """Train a network with this batch size per rank, and return its AUC on the other patches."""
    ids, labels = patches.trainset.ids, patches.trainset.labels
    config = TrainConfig(
        weights="none", epochs=EPOCHS, batch_size=GLOBAL_BATCH, lr=1e-3, color=0.3, precision="bf16", seed=seed
    )
    learner = _Learner(config, ALONE, create_model(MODEL, seed))
    trainset = TrainSet(patches.pack, ids[:TRAIN_PATCHES], labels[:TRAIN_PATCHES])
    for epoch in range(EPOCHS):
        batches = EpochBatches(trainset, config, epoch=epoch, rank=0, world_size=1)
        for step in range(len(batches)):
            done, steps = epoch * len(batches) + step, EPOCHS * len(batches)
            simulate_step(learner, batches[step], rank_batch, _learning_rate(done, steps, config))
    probabilities = predict_ids(learner.model, patches.pack, ids[TRAIN_PATCHES:], ALONE, config, views=1)
    return auc(labels[TRAIN_PATCHES:], probabilities)


def time_collectives(rank: int, folder: str, channels: list[int]) -> None:
    """Write the milliseconds of the collectives of a training step to a file. Runs in each of two processes."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    sums = [torch.zeros(2 * count) for count in channels]
    milliseconds = []
    for _ in range(20):
        dist.barrier()
        began = time.perf_counter()
        for tensor in [*sums, *sums]:  # forward and backward
            dist.all_reduce(tensor)
        milliseconds.append(1000 * (time.perf_counter() - began))
    if rank == 0:
        Path(folder, "result").write_text(f"{min(milliseconds):.0f} to {statistics.median(milliseconds):.0f}")
    dist.destroy_process_group()


def measure_collectives() -> tuple[int, str]:
    """Return the number of collectives of a step with synchronised batch norm, and their time between two processes.

    The time is the minimum and the median in milliseconds, as text.
    """
    norms = [part for part in create_model("densenet121").modules() if isinstance(part, nn.BatchNorm2d)]
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(time_collectives, (folder, [norm.num_features for norm in norms]), nprocs=2)
        return 2 * len(norms), Path(folder, "result").read_text()


def main() -> None:
    """Run the benchmark, print the result and save it."""
    torch.set_num_threads(THREADS)
    with prepare_patches() as patches:
        cosines = compare_gradients(patches)
        aucs = {size: [train_and_score(patches, size, seed) for seed in range(SEEDS)] for size in TRAINED_RANK_BATCHES}
        unseen = len(patches.trainset.ids) - TRAIN_PATCHES
    count, milliseconds = measure_collectives()
    facts = {
        f"AUC over {unseen} other patches after {EPOCHS} epochs of {TRAIN_PATCHES}, {SEEDS} seeds, {size} per rank": (
            f"{statistics.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"
        )
        for size, values in aucs.items()
    }
    facts[f"synchronised batch norm, {count} all-reduces per step between two gloo processes"] = f"{milliseconds} ms"
    notes = [
        f"{GLOBAL_BATCH} per rank is what synchronised batch norm computes. torch has it on GPUs only. Here one "
        "process computes the part of each rank in turn. Two T4s at the default batch of 128 have 64 per rank."
    ]
    title = (
        f"cosine between the gradient and that of a complete batch of {GLOBAL_BATCH}, network trained for three epochs"
    )
    publish(Result("batch_norm", title, "cosine", cosines, facts, notes))


if __name__ == "__main__":
    main()

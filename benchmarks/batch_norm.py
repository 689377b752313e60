"""What batch norm's statistics per rank do to gradient and result, and what synchronised ones would cost.

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

from benchmarks.inference import train_a_little
from benchmarks.patches import Bench, bench_patches
from benchmarks.timing import QUICK, THREADS, Result, publish
from benchmarks.training import ALONE, MODEL
from claris_kaggle.core.config import TrainConfig
from claris_kaggle.data.augment import to_input
from claris_kaggle.data.batches import Batch, EpochBatches, TrainSet
from claris_kaggle.evaluation.metrics import auc
from claris_kaggle.inference.forward import predict_ids
from claris_kaggle.models.factory import create_model
from claris_kaggle.training.learner import _Learner, _learning_rate

WHOLE, RANK_SIZES, DRAWS = 128, (64, 32, 16), 4
TRAINED, EPOCHS, SEEDS, LEARNT = 640, 6, 3, (128, 64, 16)
if QUICK:
    WHOLE, RANK_SIZES, DRAWS, TRAINED, EPOCHS, SEEDS, LEARNT = 8, (4,), 1, 8, 1, 1, (8, 4)


def gradient(model: nn.Module, images: Tensor, labels: Tensor, parts: int) -> Tensor:
    """The mean over the parts of each one's own gradient, as one vector: what DDP computes."""
    model.train()
    model.zero_grad()
    for some, truth in zip(images.chunk(parts), labels.chunk(parts), strict=True):
        (nn.functional.cross_entropy(model(some), truth) / parts).backward()
    return torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None]).clone()


def compare_gradients(bench: Bench) -> dict[str, list[float]]:
    """Cosines to the whole batch's gradient, for each number of patches a rank."""
    cosines: dict[str, list[float]] = {f"{size} per rank": [] for size in (WHOLE, *RANK_SIZES)}
    model = train_a_little(bench)
    for number in range(DRAWS):
        rows = torch.randperm(600, generator=torch.Generator().manual_seed(number))[:WHOLE].numpy()
        ids = [bench.trainset.ids[row] for row in rows]
        images = to_input(torch.from_numpy(bench.pack.pixels[bench.pack.rows(ids)]), "patches")
        labels = torch.from_numpy(bench.trainset.labels[rows])
        whole = gradient(model, images, labels, 1)
        for size in (WHOLE, *RANK_SIZES):
            part = gradient(model, images, labels, WHOLE // size)
            cosines[f"{size} per rank"].append(torch.cosine_similarity(whole, part, dim=0).item())
    return cosines


def step_in_parts(learner: _Learner, batch: Batch, rank_size: int, lr: float) -> None:
    """A step of ranks that one process plays in turn: each part has its own statistics, the first's are kept."""
    images = to_input(batch.images, learner.config.normalise, batch.colors)
    learner.optimizer.param_groups[0]["lr"] = lr
    learner.optimizer.zero_grad(set_to_none=True)
    learner.model.train()
    for number, (some, truth) in enumerate(zip(images.split(rank_size), batch.labels.split(rank_size), strict=True)):
        for norm in learner.model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 0.0 if number else 0.1
        with torch.autocast("cpu", torch.bfloat16):
            logits = learner.model(some)
        (nn.functional.cross_entropy(logits.float(), truth, reduction="sum") / len(images)).backward()
    learner.optimizer.step()


def learn(bench: Bench, rank_size: int, seed: int) -> float:
    """AUC over the patches that were not trained on."""
    ids, labels = bench.trainset.ids, bench.trainset.labels
    config = TrainConfig(
        weights="none", epochs=EPOCHS, batch_size=WHOLE, lr=1e-3, color=0.3, precision="bf16", seed=seed
    )
    learner = _Learner(config, ALONE, create_model(MODEL, seed))
    trainset = TrainSet(bench.pack, ids[:TRAINED], labels[:TRAINED])
    for epoch in range(EPOCHS):
        batches = EpochBatches(trainset, config, epoch=epoch, rank=0, world_size=1)
        for step in range(len(batches)):
            done, steps = epoch * len(batches) + step, EPOCHS * len(batches)
            step_in_parts(learner, batches[step], rank_size, _learning_rate(done, steps, config))
    found = predict_ids(learner.model, bench.pack, ids[TRAINED:], ALONE, config, views=1)
    return auc(labels[TRAINED:], found)


def time_collectives(rank: int, folder: str, channels: list[int]) -> None:
    """One of two processes: milliseconds of a step's sums, forward and backward, go to a file."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    sums = [torch.zeros(2 * count) for count in channels]
    took = []
    for _ in range(20):
        dist.barrier()
        began = time.perf_counter()
        for one in [*sums, *sums]:
            dist.all_reduce(one)
        took.append(1000 * (time.perf_counter() - began))
    if rank == 0:
        Path(folder, "took").write_text(f"{min(took):.0f} to {statistics.median(took):.0f}")
    dist.destroy_process_group()


def cost_of_collectives() -> tuple[int, str]:
    """How many collectives a synchronised step needs, and their milliseconds between two gloo processes."""
    norms = [one for one in create_model("densenet121").modules() if isinstance(one, nn.BatchNorm2d)]
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(time_collectives, (folder, [one.num_features for one in norms]), nprocs=2)
        return 2 * len(norms), Path(folder, "took").read_text()


def main() -> None:
    """Measure, print and keep."""
    torch.set_num_threads(THREADS)
    with bench_patches() as bench:
        cosines = compare_gradients(bench)
        learnt = {size: [learn(bench, size, seed) for seed in range(SEEDS)] for size in LEARNT}
        unseen = len(bench.trainset.ids) - TRAINED
    count, took = cost_of_collectives()
    facts = {
        f"AUC over {unseen} other patches after {EPOCHS} epochs of {TRAINED}, {SEEDS} seeds, {size} per rank": (
            f"{statistics.mean(aucs):.3f} ({', '.join(f'{one:.3f}' for one in aucs)})"
        )
        for size, aucs in learnt.items()
    }
    facts[f"synchronised, a step's {count} sums between two gloo processes"] = f"{took} ms"
    notes = [
        f"{WHOLE} per rank is what synchronised batch norm computes. torch has it on GPUs only. Here one process acts "
        "as each rank in turn. Two T4s at the default batch of 128 have 64 per rank."
    ]
    title = f"cosine between the gradient and that of a whole batch of {WHOLE}, a network trained for three epochs"
    publish(Result("batch_norm", title, "cosine", cosines, facts, notes))


if __name__ == "__main__":
    main()

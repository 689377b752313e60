"""What batch norm's statistics per rank do to the gradient: its cosine to that of the whole batch.

python -m benchmarks.batch_norm
"""

from __future__ import annotations

import os
import statistics

import torch
from torch import Tensor, nn

from benchmarks.inference import train_a_little
from benchmarks.patches import bench_patches
from benchmarks.timing import Result, publish
from claris_kaggle.transforms import to_input

WHOLE, RANK_SIZES, DRAWS = 128, (64, 32, 16), 4


def gradient(model: nn.Module, images: Tensor, labels: Tensor, parts: int) -> Tensor:
    """The mean over the parts of each one's own gradient, as one vector: what DDP computes."""
    model.train()
    model.zero_grad()
    for some, truth in zip(images.chunk(parts), labels.chunk(parts), strict=True):
        (nn.functional.cross_entropy(model(some), truth) / parts).backward()
    return torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None]).clone()


def main() -> None:
    """Measure, print and keep."""
    torch.set_num_threads(os.cpu_count() or 1)
    cosines: dict[str, list[float]] = {f"{size} a rank": [] for size in (WHOLE, *RANK_SIZES)}
    with bench_patches() as bench:
        model = train_a_little(bench)
        for number in range(DRAWS):
            rows = torch.randperm(600, generator=torch.Generator().manual_seed(number))[:WHOLE].numpy()
            ids = [bench.trainset.ids[row] for row in rows]
            images = to_input(torch.from_numpy(bench.pack.pixels[bench.pack.rows(ids)]), "patches")
            labels = torch.from_numpy(bench.trainset.labels[rows])
            whole = gradient(model, images, labels, 1)
            for size in (WHOLE, *RANK_SIZES):
                part = gradient(model, images, labels, WHOLE // size)
                cosines[f"{size} a rank"].append(torch.cosine_similarity(whole, part, dim=0).item())
    middle = {name: statistics.median(values) for name, values in cosines.items()}
    title = f"cosine of the gradient to that of a whole batch of {WHOLE}, a network trained for three epochs"
    publish(
        Result(
            "batch_norm", title, "cosine", cosines,
            {"medians": ", ".join(f"{name} {value:.2f}" for name, value in middle.items())},
            ["Synchronised batch norm would make all of them 1; torch has it on GPUs alone, so its cost is not known "
             "here. Two T4s at the default batch of 128 have 64 a rank."],
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()

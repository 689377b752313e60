"""Train a network without batch norm for a few steps. As a program, it is started as several ranks.

The ranks are forks of a process that has imported everything and trained nothing, so each starts at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import albumentations  # noqa: F401
import numpy as np
import torch
import torch._dynamo  # imported by the first optimizer
from torch import nn

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.paths import DataDir
from claris_kaggle.data.batches import EpochBatches, ExtraPatches, TrainSet
from claris_kaggle.data.prepare import get_pack
from claris_kaggle.data.tables import read_labels, read_sample
from claris_kaggle.runtime.distributed import join_world
from claris_kaggle.training.learner import _Learner, _sum_over_ranks, _train_epoch
from tests.support.runs import free_port


def main(root: str, cache: str, out: str) -> None:
    data = DataDir(Path(root))
    ids, labels = read_labels(data.labels)
    pack = get_pack(data, "train", ids, Path(cache), verified=True)
    others = get_pack(data, "test", read_sample(data.sample), Path(cache), verified=True)
    extra = ExtraPatches(others, others.ids[::2], np.arange(len(others.ids[::2])) % 2, 0.5)
    config = TrainConfig(
        model="tiny", weights="none", epochs=1, batch_size=50, lr=1e-3, precision="fp32", threads=1,
        class_weight=1.5, color=1.0, ema=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 5, stride=4), nn.GELU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, 2)
    )
    with join_world() as world:
        learner = _Learner(config, world, model)
        batches = EpochBatches(
            TrainSet(pack, ids, labels.astype("int64"), (1.0, 1.5), extra), config, epoch=0, rank=world.rank,
            world_size=world.world_size,
        )  # fmt: skip
        loss = _sum_over_ranks(world, _train_epoch(learner, batches, 0, lambda rows: ""))
        if world.is_main:
            torch.save({"loss": loss, "model": learner.model.state_dict()}, out)


def run_rank(rank: int, *arguments: str) -> None:
    """Take the steps in a fork of this process."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    main(*arguments)


if __name__ == "__main__":
    ranks, *paths = sys.argv[1:]
    os.environ |= {"WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    torch.multiprocessing.start_processes(run_rank, tuple(paths), int(ranks), start_method="fork")

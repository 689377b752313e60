"""Compare training and prediction from scratch with the reference: same images, epochs, batch size and threads.

python -m benchmarks.whole
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import reference, two_t4s
from benchmarks.patches import BenchmarkPatches, prepare_patches
from benchmarks.timing import QUICK, THREADS, Result, interleave, publish, rate_of
from benchmarks.training import ALONE, new_learner
from claris_kaggle.data.batches import EpochBatches, TrainSet
from claris_kaggle.data.pack import ensure_pack
from claris_kaggle.inference.forward import predict_ids
from claris_kaggle.models.factory import fuse_batch_norm
from claris_kaggle.training.learner import _train_epoch

TRAIN_PATCHES, PREDICT_PATCHES, BATCH, VIEWS, ROUNDS = 512, 256, 32, 8, 3
if QUICK:
    TRAIN_PATCHES, PREDICT_PATCHES, BATCH = 8, 4, 4
Times = dict[str, list[float]]


def record_time(times: Times, name: str, function: Callable[[], object]) -> object:
    """Call the function, add its seconds to `times`, and return its result."""
    began = time.perf_counter()
    result = function()
    times.setdefault(name, []).append(time.perf_counter() - began)
    return result


def run_reference(patches: BenchmarkPatches, times: Times) -> None:
    """Train one epoch and predict eight views with the reference."""
    ids, labels = patches.trainset.ids, patches.trainset.labels.tolist()
    folder = patches.data.patches("train")
    model = reference.create_network()
    files = reference.Patches(folder, ids[:TRAIN_PATCHES], labels[:TRAIN_PATCHES], reference.train_transform())
    batches = reference.create_loader(files, BATCH, 0, shuffle=True)
    record_time(times, "train", lambda: reference.train(model, batches, 1))
    record_time(times, "predict", lambda: reference.predict(model, folder, ids[-PREDICT_PATCHES:], BATCH, 0, VIEWS))


def train_and_predict(patches: BenchmarkPatches, precision: str, times: Times) -> None:
    """Pack the files, train one epoch and predict eight views with claris."""
    ids, labels = patches.trainset.ids, patches.trainset.labels
    with tempfile.TemporaryDirectory() as folder:
        pack = record_time(times, "pack", lambda: ensure_pack(patches.data.patches("train"), ids, Path(folder), 1))
        trainset = TrainSet(pack, ids[:TRAIN_PATCHES], labels[:TRAIN_PATCHES])  # type: ignore[arg-type]
        learner = new_learner(precision)
        batches = EpochBatches(trainset, learner.config, epoch=0, rank=0, world_size=1)
        record_time(times, "train", lambda: _train_epoch(learner, batches, 0, lambda rows: ""))
        fused = fuse_batch_norm(learner.model)
        record_time(
            times, "predict",
            lambda: predict_ids(fused, trainset.pack, ids[-PREDICT_PATCHES:], ALONE, learner.config, views=VIEWS),
        )  # fmt: skip


def main() -> None:
    """Run the benchmark, print the result and save it."""
    torch.set_num_threads(THREADS)
    times: dict[str, Times] = {"reference": {}, "claris, fp32": {}, "claris, bf16": {}}
    with prepare_patches() as patches:
        rates = interleave(  # 3,600 per call: the rates are jobs per hour
            {
                "reference": rate_of(3600, lambda: run_reference(patches, times["reference"])),
                "claris, fp32": rate_of(3600, lambda: train_and_predict(patches, "fp32", times["claris, fp32"])),
                "claris, bf16": rate_of(3600, lambda: train_and_predict(patches, "bf16", times["claris, bf16"])),
            },
            rounds=ROUNDS,
        )
        description = patches.description
    facts = {
        f"time, {name}": ", ".join(f"{part} {statistics.median(each[-ROUNDS:]):.1f} s" for part, each in parts.items())
        for name, parts in times.items()
    }
    task = f"train {TRAIN_PATCHES} and predict {PREDICT_PATCHES} with eight views"
    title = f"{task}, one process, {THREADS} threads, {description}"
    publish(
        Result(
            "whole", title, "jobs/hour", rates, {**facts, **two_t4s.estimate_facts()}, [two_t4s.describe_assumptions()]
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()

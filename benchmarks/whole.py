"""Train and predict from nothing, the reference against ours: same images, epochs, batch and threads.

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
from benchmarks.patches import Bench, bench_patches
from benchmarks.timing import QUICK, THREADS, Result, interleave, publish
from benchmarks.training import ALONE, new_learner
from claris_kaggle.data.batches import EpochBatches, TrainSet
from claris_kaggle.data.pack import ensure_pack
from claris_kaggle.inference.forward import predict_ids
from claris_kaggle.models.factory import fuse_batch_norm
from claris_kaggle.training.learner import _train_epoch

TRAINED, PREDICTED, BATCH, VIEWS, ROUNDS = 512, 256, 32, 8, 3
if QUICK:
    TRAINED, PREDICTED, BATCH = 8, 4, 4
Times = dict[str, list[float]]


def timed(times: Times, name: str, work: Callable[[], object]) -> object:
    """Do the work and put down its seconds."""
    began = time.perf_counter()
    result = work()
    times.setdefault(name, []).append(time.perf_counter() - began)
    return result


def run_reference(bench: Bench, times: Times) -> None:
    """One epoch and eight passes, in the competitors' way."""
    ids, labels = bench.trainset.ids, bench.trainset.labels.tolist()
    folder = bench.data.patches("train")
    model = reference.create()
    patches = reference.Patches(folder, ids[:TRAINED], labels[:TRAINED], reference.train_transform())
    batches = reference.loader(patches, BATCH, 0, shuffle=True)
    timed(times, "train", lambda: reference.train(model, batches, 1))
    timed(times, "predict", lambda: reference.predict(model, folder, ids[-PREDICTED:], BATCH, 0, VIEWS))


def run_ours(bench: Bench, precision: str, times: Times) -> None:
    """Pack, one epoch and eight views, in ours."""
    ids, labels = bench.trainset.ids, bench.trainset.labels
    with tempfile.TemporaryDirectory() as folder:
        pack = timed(times, "pack", lambda: ensure_pack(bench.data.patches("train"), ids, Path(folder), 1))
        trainset = TrainSet(pack, ids[:TRAINED], labels[:TRAINED])  # type: ignore[arg-type]
        learner = new_learner(precision)
        batches = EpochBatches(trainset, learner.config, epoch=0, rank=0, world_size=1)
        timed(times, "train", lambda: _train_epoch(learner, batches, 0, lambda rows: ""))
        folded = fuse_batch_norm(learner.model)
        timed(
            times, "predict",
            lambda: predict_ids(folded, trainset.pack, ids[-PREDICTED:], ALONE, learner.config, views=VIEWS),
        )  # fmt: skip


def as_rate(work: Callable[[], None]) -> Callable[[], float]:
    """Whole jobs an hour."""

    def measured() -> float:
        began = time.perf_counter()
        work()
        return 3600 / (time.perf_counter() - began)

    return measured


def main() -> None:
    """Compare, print and keep."""
    torch.set_num_threads(THREADS)
    times: dict[str, Times] = {"reference": {}, "claris, fp32": {}, "claris, bf16": {}}
    with bench_patches() as bench:
        rates = interleave(
            {
                "reference": as_rate(lambda: run_reference(bench, times["reference"])),
                "claris, fp32": as_rate(lambda: run_ours(bench, "fp32", times["claris, fp32"])),
                "claris, bf16": as_rate(lambda: run_ours(bench, "bf16", times["claris, bf16"])),
            },
            rounds=ROUNDS,
        )
        about = bench.about
    facts = {
        f"time, {name}": ", ".join(f"{part} {statistics.median(each[-ROUNDS:]):.1f} s" for part, each in parts.items())
        for name, parts in times.items()
    }
    title = f"train {TRAINED} and predict {PREDICTED} with eight views, one process, {THREADS} threads, {about}"
    publish(
        Result(
            "whole", title, "jobs/hour", rates, {**facts, **two_t4s.prediction()}, [two_t4s.assumptions()]
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()

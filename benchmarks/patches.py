"""Patches for the benchmarks: the sample of real patches if it exists, synthetic ones otherwise."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.timing import ROOT
from claris_kaggle.core.paths import DataDir
from claris_kaggle.data.batches import TrainSet
from claris_kaggle.data.pack import Pack, ensure_pack
from claris_kaggle.data.patches import PATCH_SHAPE
from claris_kaggle.data.synthetic import generate
from claris_kaggle.data.tables import read_labels

SAMPLE = ROOT.parent / "shared" / "pcam-sample"


@dataclass(frozen=True)
class BenchmarkPatches:
    """Patches as files and as a pack.

    Attributes:
        data: the competition folder.
        trainset: all training patches.
        description: number and kind of the patches, for titles.
    """

    data: DataDir
    trainset: TrainSet
    description: str

    @property
    def pack(self) -> Pack:
        """Return the pack of the training patches."""
        return self.trainset.pack


@contextmanager
def prepare_patches(minimum: int = 1024) -> Iterator[BenchmarkPatches]:
    """Yield the patches with a temporary pack. The folder is CLARIS_BENCH_DATA or the sample.

    Without that folder, at least `minimum` synthetic patches are generated.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = DataDir(Path(os.environ.get("CLARIS_BENCH_DATA", SAMPLE)))
        kind = "real patches"
        if not data.labels.exists():
            data = DataDir(generate(Path(folder) / "data", train=max(minimum, 1024), test=64))
            kind = "synthetic patches"
        ids, labels = read_labels(data.labels)
        pack = ensure_pack(data.patches("train"), ids, Path(folder) / "cache")
        yield BenchmarkPatches(data, TrainSet(pack, ids, labels.astype(np.int64)), f"{len(ids):,} {kind}")


def repeat_patch(rows: int) -> TrainSet:
    """Return a training set of that many rows that all hold one patch of noise, so that it needs no disk and memory."""
    ids = [f"{number:040x}" for number in range(rows)]
    patch = np.random.default_rng(0).integers(0, 256, PATCH_SHAPE, dtype=np.uint8)
    pack = Pack(ids, np.broadcast_to(patch, (rows, *PATCH_SHAPE)), Path())
    return TrainSet(pack, ids, np.arange(rows, dtype=np.int64) % 2)

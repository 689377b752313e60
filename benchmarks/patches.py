"""Patches for the benchmarks: the real sample where it is, else generated ones, and their packs."""

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
from claris_kaggle.data.synthetic import generate
from claris_kaggle.data.tables import read_labels

SAMPLE = ROOT.parent / "shared" / "pcam-sample"


@dataclass(frozen=True)
class Bench:
    """Patches on disk and packed.

    Attributes:
        data: the folder of files.
        trainset: all training patches.
        about: what they are.
    """

    data: DataDir
    trainset: TrainSet
    about: str

    @property
    def pack(self) -> Pack:
        """The pack of the training patches."""
        return self.trainset.pack


@contextmanager
def bench_patches(least: int = 1024) -> Iterator[Bench]:
    """The patches, with a cache that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        data = DataDir(Path(os.environ.get("CLARIS_BENCH_DATA", SAMPLE)))
        about = "real patches"
        if not data.labels.exists():
            data = DataDir(generate(Path(folder) / "data", train=max(least, 1024), test=64))
            about = "generated patches"
        ids, labels = read_labels(data.labels)
        pack = ensure_pack(data.patches("train"), ids, Path(folder) / "cache")
        yield Bench(data, TrainSet(pack, ids, labels.astype(np.int64)), f"{len(ids):,} {about}")

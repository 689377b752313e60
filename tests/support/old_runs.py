"""Runs of earlier versions, stored in the folder `old_runs`, and the patches that they were trained on.

Each run was written by `claris folds --k 2`, `claris train` (tiny network, two epochs) and `claris predict` of its
version, without checkpoints. `probabilities.csv` has the OOF and test probabilities that this version predicted.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data.patches import _encode_tiff, patch_id
from claris_kaggle.data.tables import write_table

_RECORDED_FIELDS = Path(__file__).parent / "old_runs"
OLD_RUNS = sorted(path.name for path in _RECORDED_FIELDS.iterdir())


def _draw(number: int) -> np.ndarray:
    """A patch of whole numbers, the same with every version of NumPy; odd numbers are coarse and malignant."""
    rows, columns = np.meshgrid(np.arange(96), np.arange(96), indexing="ij")
    step = 12 if number % 2 else 5
    shade = (rows // step * 7 + columns // step * 13 + number * 29) % 97
    return np.stack([120 + shade, 60 + shade // 2, 140 + (shade + number) % 89], axis=-1).astype(np.uint8)


def put_old_data(folder: Path, train: int = 24, test: int = 6) -> DataDir:
    """The patches in the competition's layout."""
    data = DataDir(folder)
    ids = []
    for number in range(train + test):
        pixels = _draw(number)
        ids.append(patch_id(pixels))
        place = data.patches("train" if number < train else "test") / f"{ids[-1]}.tif"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(_encode_tiff(pixels))
    write_table(data.labels, {"id": ids[:train], "label": np.arange(train) % 2})
    write_table(data.sample, {"id": ids[train:], "label": np.zeros(test, int)})
    return data


def put_old_run(name: str, folder: Path) -> tuple[RunDir, dict[str, float]]:
    """A copy of the run without predictions, and the probability that its version predicted for each id."""
    shutil.copytree(_RECORDED_FIELDS / name, folder)
    rows = (folder / "probabilities.csv").read_text("utf-8").splitlines()[1:]
    (folder / "probabilities.csv").unlink()
    return RunDir(folder), {row.split(",")[0]: float(row.split(",")[1]) for row in rows}

"""Measure the AUC by number of views, and with batch statistics of the validation patches, on finished recipe runs.

python -m benchmarks.views [--names original scratch] [--seeds 0 1 2] [--out benchmark-runs]

The runs are those of `benchmarks.recipes` in --out.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from benchmarks.recipe_page import VIEWS, write_page
from benchmarks.recipe_rows import RECIPES, unit_path
from benchmarks.timing import ROOT
from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.errors import format_count
from claris_kaggle.core.files import read_json, write_json
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data.augment import crop_centre, to_input
from claris_kaggle.data.prepare import read_training
from claris_kaggle.evaluation.metrics import auc
from claris_kaggle.inference.forward import _view_logits
from claris_kaggle.inference.tta import _VIEW_COUNTS, average_views
from claris_kaggle.models.factory import trained_network
from claris_kaggle.models.weights import load_finished

BLOCK = 48


def recompute_batch_norm(model: nn.Module, images: Tensor, config: TrainConfig) -> nn.Module:
    """Return a copy of the network whose batch norms have the statistics of these patches."""
    adapted = copy.deepcopy(model)
    blocks = crop_centre(images, config.crop).split(BLOCK)
    update_bn((to_input(block, config.normalise, resolution=config.resolution) for block in blocks), adapted)
    return adapted.eval()


def predict_all_views(model: nn.Module, images: Tensor, config: TrainConfig) -> Tensor:
    """Return the logits of all eight views, float32 [8, N, 2]."""
    with torch.inference_mode():
        return torch.cat(
            [_view_logits(model, block, config, max(_VIEW_COUNTS)) for block in images.split(BLOCK)], dim=1
        )


def measure_auc(run_dir: RunDir, out: Path) -> dict[str, float]:
    """Return the pooled OOF AUC of the run for each variant of prediction."""
    config = TrainConfig.from_json(read_json(run_dir.config), run_dir.config)
    data = read_training(DataDir(out / "data"), run_dir.folds, out / "cache")
    predictions: dict[str, NDArray[np.float32]] = {}
    for fold in range(data.folds.k):
        rows = data.folds.valid_rows(fold)
        images = torch.from_numpy(data.pack.pixels[data.pack.rows([data.folds.ids[row] for row in rows])])
        model = trained_network(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        load_finished(run_dir.fold(fold), model)
        logits = predict_all_views(model.eval(), images, config)
        variants = {format_count(views, "view"): logits[:views] for views in _VIEW_COUNTS}
        adapted = recompute_batch_norm(model, images, config)
        variants["8 views, own batch statistics"] = predict_all_views(adapted, images, config)
        for name, part in variants.items():
            column = predictions.setdefault(name, np.empty(len(data.folds.ids), np.float32))
            column[rows] = average_views(part).numpy()
    return {name: auc(data.folds.labels, column) for name, column in predictions.items()}


def main() -> None:
    """Measure the runs that exist, save the results and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", default=["original", "scratch"], choices=list(RECIPES), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmark-runs")
    arguments = parser.parse_args()
    results = read_json(VIEWS) if VIEWS.exists() else {}  # keep the results of runs that no longer exist
    for name in arguments.names:
        runs = [RunDir(arguments.out / unit_path(name, seed).stem) for seed in arguments.seeds]
        measured = [measure_auc(run, arguments.out) for run in runs if run.config.exists()]
        if measured:
            results[name] = {key: float(np.mean([one[key] for one in measured])) for key in measured[0]}
            results[name]["seeds"] = len(measured)
    write_json(VIEWS, results)
    write_page(arguments.out)


if __name__ == "__main__":
    main()

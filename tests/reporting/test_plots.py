"""Test the figures for notebooks: they show the given predictions."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

import claris_kaggle as ck
from claris_kaggle.core.errors import DataError
from claris_kaggle.core.notebook import html_table
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.evaluation.metrics import auc


def test_the_roc_figure_has_a_curve_per_fold_and_one_of_all_patches_with_their_auc(finished: RunDir) -> None:
    oof = ck.load_run(finished).oof
    (axes,) = ck.plot_roc(finished).axes
    labels = [str(line.get_label()) for line in axes.get_lines()]
    assert labels[: oof.fold.max() + 2] == [
        *(f"fold {n}: AUC {auc(oof.labels[oof.fold == n], oof.probabilities[oof.fold == n]):.4f}" for n in range(3)),
        f"all patches: AUC {auc(oof.labels, oof.probabilities):.4f}",
    ]


def test_the_calibration_figure_has_a_point_per_bin(finished: RunDir) -> None:
    (axes,) = ck.plot_calibration(finished.root, bins=4).axes
    assert max(len(line.get_xdata()) for line in axes.get_lines()) == 4  # type: ignore[arg-type]


def test_the_patches_with_the_highest_loss_are_shown_with_their_own_pixels(
    finished: RunDir, generated: DataDir
) -> None:
    oof = ck.load_run(finished).oof
    figure = ck.plot_top_losses(oof, generated, count=5)
    assert isinstance(figure, Figure) and len(figure.axes) == 5
    losses = -np.log(np.where(oof.labels == 1, oof.probabilities, 1 - oof.probabilities))
    worst = oof.ids[int(np.argmax(losses))]
    assert np.array_equal(
        figure.axes[0].get_images()[0].get_array(), ck.read_patch(generated.root / f"train/{worst}.tif")
    )
    with pytest.raises(DataError, match="count 0"):
        ck.plot_top_losses(oof, generated, count=0)


def test_results_show_themselves_in_notebooks_and_text_is_escaped(finished: RunDir) -> None:
    oof = ck.load_run(finished).oof
    found = ck.summary(oof.labels, oof.probabilities)
    assert f"<th>auc</th><td>{found.auc:.4f}</td>" in found._repr_html_()
    folds = ck.read_folds(finished.folds)._repr_html_()
    assert folds.count("<tr>") == 4 and "malignant" in folds
    assert html_table({"<b>": ["<i>"]}) == "<table><tr><th>&lt;b&gt;</th><td>&lt;i&gt;</td></tr></table>"

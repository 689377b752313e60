"""Draw the charts of the report as SVG with text alternatives. They inherit colours and fonts from the page.

Colours are CSS variables, so the page can set one value for light and one for dark mode. Matplotlib draws each with
a unique colour code, which is replaced by the variable in the SVG. Curves carry the number of their series, and a chart
of curves describes its axes in JSON, so that the script of the page can hide a series and read values at the pointer.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from claris_kaggle.data.arrays import THRESHOLD, Labels
from claris_kaggle.data.fold_file import CLASS_NAMES
from claris_kaggle.evaluation.calibration import CalibrationCurve
from claris_kaggle.evaluation.metrics import auc
from claris_kaggle.evaluation.run_metrics import OverallMetrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SERIES, _SERIES_ID = 6, "series-"
_NAMES = ("ink", "muted", "line", *CLASS_NAMES, *(f"series-{number}" for number in range(_SERIES)))
_CODES = {name: f"#fe00{number:02x}" for number, name in enumerate(_NAMES)}
_INK, _MUTED, _LINE_COLOR = _CODES["ink"], _CODES["muted"], _CODES["line"]
_MARKERS = "os^Dv*"
_HISTOGRAM_EDGES: list[float] = np.linspace(0, 1, 21).tolist()
# Points kept of a curve. A screen cannot show more.
_POINTS = 240
# Below this recall, too few patches are predicted malignant for a stable precision.
_MIN_PLOTTED_RECALL = 0.02
_CORNER = 0.2  # side of the enlarged corner of the ROC chart
_WIDTH, _HEIGHT = 4.4, 3.5
# Characters that fit in one row of a legend, and the longest title in it.
_LEGEND_WIDTH, _TITLE_LENGTH = 63, 22
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.size": 9, "axes.edgecolor": _MUTED, "axes.labelcolor": _INK, "text.color": _INK,
    "xtick.color": _MUTED, "ytick.color": _MUTED, "xtick.labelcolor": _INK, "ytick.labelcolor": _INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": _LINE_COLOR,
    "axes.axisbelow": True, "lines.linewidth": 1.4, "legend.frameon": False, "legend.fontsize": 8.5,
    "legend.handlelength": 1.6, "legend.labelspacing": 0.45, "legend.columnspacing": 3.0, "text.parse_math": False,
}  # fmt: skip
_REFERENCE: dict[str, Any] = {"color": _MUTED, "linewidth": 0.8, "linestyle": (0, (2, 3))}
_Curve = tuple[str, Labels, NDArray[np.floating]]


@dataclass(frozen=True)
class _Drawing:
    """A chart as SVG text.

    Attributes:
        svg: the SVG.
        words: the text alternative.
        plot: JSON for the script of the page: position and limits of the axes in the SVG, names of axes and series;
            empty for a chart without series.
    """

    svg: str
    words: str
    plot: str = ""


def _series_color(number: int) -> str:
    """Return the colour code of a fold or run."""
    return _CODES[f"series-{number % _SERIES}"]


def _draw_chart(
    name: str, words: str, xlabel: str, ylabel: str, paint: Callable[[Axes], None], height: float = _HEIGHT
) -> _Drawing:
    """Draw a chart with one pair of axes. Does not use pyplot's global state. Equal content gives equal SVG.

    Args:
        name: unique name of the chart on the page, used for the ids of its clip paths and markers.
        words: the text alternative.
        xlabel, ylabel: labels of the axes.
        paint: called with the axes to draw the content.
        height: in inches, the width is `_WIDTH`.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        layout = ConstrainedLayoutEngine()
        figure = Figure(figsize=(_WIDTH, height), layout=layout, dpi=72)
        FigureCanvasSVG(figure)  # the layout needs its text sizes
        axes = figure.add_subplot()
        axes.set(xlabel=xlabel, ylabel=ylabel)
        for part in (figure, axes):
            part.patch.set_visible(False)
        paint(axes)
        handles, labels = axes.get_legend_handles_labels()
        series = {str(one.get_gid()): label for one, label in zip(handles, labels, strict=True) if one.get_gid()}
        if labels:
            columns = min(3, max(1, _LEGEND_WIDTH // (7 + max(map(len, labels)))))
            figure.legend(handles, labels, loc="outside upper left", ncols=columns)
        stream = io.StringIO()
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser renders the text with the fonts of the page
        layout.execute(figure)
        figure.set_layout_engine("none")  # otherwise `savefig` would draw everything twice
        figure.savefig(stream, format="svg", metadata={"Date": None})
        plot = _describe_axes(axes, series) if series else ""
    return _Drawing(_to_inline(stream.getvalue()), words, plot)


def _describe_axes(axes: Axes, series: Mapping[str, str]) -> str:
    """Return the JSON of `_Drawing.plot`. `series` has the label of each series by its gid."""
    left, bottom, width, height = axes.get_position().bounds
    # In SVG points, from the top left.
    points_wide, points_high = (72 * side for side in axes.get_figure(root=True).get_size_inches())  # type: ignore[union-attr]
    box = [left * points_wide, (1 - bottom - height) * points_high, width * points_wide, height * points_high]
    described = {
        "box": [round(value, 2) for value in box],
        "x": [float(value) for value in axes.get_xlim()],
        "y": [float(value) for value in axes.get_ylim()],
        "across": axes.get_xlabel(),
        "up": axes.get_ylabel(),
        "series": {gid.removeprefix(_SERIES_ID): label for gid, label in series.items()},
    }
    return json.dumps(described)


def _to_inline(text: str) -> str:
    """Convert an SVG file of Matplotlib to inline SVG: no ids shared between charts, no style rules for the page."""
    text = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL
    )
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(rf'<g id="{_SERIES_ID}(\d+)"', r'<g data-series="\1"', text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'="[^"]*"', lambda value: re.sub(r"(\.\d\d)\d+", r"\1", value[0]), text)
    text = re.sub(r"\s*\n\s*", "\n", text).strip()
    text = re.sub(r"#fe00([0-9a-f]{2})", lambda code: f"var(--{_NAMES[int(code[1], 16)]})", text)
    return text.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)


def _thin_curve(x: NDArray[np.floating], y: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Reduce a curve to about `_POINTS` points, evenly spaced along its length. Keeps both ends."""
    length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    keep = np.unique([0, *np.searchsorted(length, np.linspace(0, length[-1], _POINTS)).tolist(), len(length) - 1])
    return x[keep], y[keep]


def _by_fold(labels: Labels, values: NDArray[np.floating], fold: NDArray[np.int64]) -> list[_Curve]:
    """Return the part of each fold, or an empty list if there is only one fold. Skips folds with a single class."""
    parts = [(f"fold {n}", labels[fold == n], values[fold == n]) for n in np.unique(fold).tolist()]
    return [part for part in parts if len(np.unique(part[1])) == 2] if len(parts) > 1 else []


def _draw_learning(name: str, histories: Mapping[int, pd.DataFrame]) -> list[_Drawing]:
    """Draw loss and validation AUC over the epochs, one line per fold."""
    last = {fold: table.iloc[-1] for fold, table in histories.items()}
    losses = [f"fold {fold} {row['train_loss']:.3f} and {row['valid_loss']:.3f}" for fold, row in last.items()]
    aucs = [f"fold {fold} {row['auc']:.4f}" for fold, row in last.items()]

    def lines(axes: Axes, column: str, label: str = "", style: str = "-", alpha: float = 1.0) -> None:
        for fold, table in histories.items():
            axes.plot(
                table["epoch"], table[column], label=label.format(fold), color=_series_color(fold), alpha=alpha,
                linestyle=style, marker=_MARKERS[fold % len(_MARKERS)], markersize=4, gid=f"{_SERIES_ID}{fold}",
            )  # fmt: skip
        axes.locator_params("x", integer=True, min_n_ticks=1)

    def paint_loss(axes: Axes) -> None:
        lines(axes, "train_loss", style=":", alpha=0.8)
        lines(axes, "valid_loss", label="fold {}")

    def paint_auc(axes: Axes) -> None:
        lines(axes, "auc", label="fold {}")

    loss_words = f"Training and validation loss after the last epoch: {', '.join(losses)}."
    auc_words = f"Validation AUC after the last epoch: {', '.join(aucs)}."
    return [
        _draw_chart(f"{name}-loss", loss_words, "epoch", "loss", paint_loss),
        _draw_chart(f"{name}-auc", auc_words, "epoch", "AUC", paint_auc),
    ]


def _draw_learning_of_runs(name: str, runs: Mapping[str, Mapping[int, pd.DataFrame]]) -> _Drawing:
    """Draw the validation AUC over the epochs, one line per run: the mean over its folds."""
    means = {
        title: pd.concat([table.set_index("epoch")["auc"] for table in folds.values()], axis=1).mean(axis=1)
        for title, folds in runs.items()
    }

    def paint(axes: Axes) -> None:
        for number, (title, line) in enumerate(means.items()):
            axes.plot(
                line.index, line, label=_shorten(title), color=_series_color(number),
                marker=_MARKERS[number % len(_MARKERS)], markersize=4, gid=f"{_SERIES_ID}{number}",
            )  # fmt: skip
        axes.locator_params("x", integer=True, min_n_ticks=1)

    last = ", ".join(f"{title} {line.iloc[-1]:.4f}" for title, line in means.items())
    words = f"Mean validation AUC of the folds after the last epoch: {last}."
    return _draw_chart(name, words, "epoch", "mean validation AUC of the folds", paint)


def _draw_roc(anchor: str, curves: Sequence[_Curve], whole: _Curve | None = None) -> tuple[_Drawing, _Drawing | None]:
    """Draw ROC curves, and their top left corner enlarged; None if no curve crosses half of it.

    The curve of all folds together is emphasised.
    """
    from sklearn.metrics import roc_curve

    lines, descriptions, in_corner = [], [], False
    for title, labels, values in [*curves, *([whole] if whole else [])]:
        false, true, _ = roc_curve(labels, values)
        value, sensitivity = auc(labels, values), _percent(np.interp(0.05, false, true))
        lines.append((*_thin_curve(false, true), f"{value:.4f}  {_shorten(title)}"))
        descriptions.append(f"{title}: AUC {value:.4f}, {sensitivity} true positive rate at 5 % false positive rate")
        in_corner = in_corner or np.interp(_CORNER / 2, false, true) > 1 - _CORNER

    def draw(name: str, what: str, *, corner: bool) -> _Drawing:
        def paint(axes: Axes) -> None:
            axes.plot([0, 1], [0, 1], **_REFERENCE)
            _plot_square(axes, lines, strong=whole is not None)
            if corner:
                axes.set(xlim=(-0.002, _CORNER), ylim=(1 - _CORNER, 1.002))
                axes.locator_params(nbins=5)

        words = f"{what}. {'; '.join(descriptions)}."
        return _draw_chart(name, words, "false positive rate", "true positive rate", paint)

    enlarged = draw(f"{anchor}-corner", "ROC, top left corner", corner=True) if in_corner else None
    return draw(f"{anchor}-roc", "ROC", corner=False), enlarged


def _draw_precision(name: str, curves: Sequence[_Curve], whole: _Curve) -> _Drawing:
    """Draw precision-recall curves. The curve of all folds together is emphasised."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    share = float(whole[1].mean())
    lines, descriptions = [], [f"Random predictions have a precision of {_percent(share)}"]
    for title, labels, values in [*curves, whole]:
        precision, recall, _ = precision_recall_curve(labels, values)
        plotted, value = recall >= _MIN_PLOTTED_RECALL, float(average_precision_score(labels, values))
        lines.append((*_thin_curve(recall[plotted], precision[plotted]), f"{value:.4f}  {_shorten(title)}"))
        descriptions.append(f"{title}: average precision {value:.4f}")

    def paint(axes: Axes) -> None:
        axes.axhline(share, **_REFERENCE)
        _plot_square(axes, lines, strong=True)

    words = f"Precision and recall. {'; '.join(descriptions)}."
    return _draw_chart(name, words, "recall", "precision", paint)


def _plot_square(
    axes: Axes, lines: Sequence[tuple[NDArray[np.floating], NDArray[np.floating], str]], *, strong: bool
) -> None:
    """Draw labelled lines on the unit square. `strong` emphasises the last one."""
    for number, (x, y, label) in enumerate(lines, 1):
        last = strong and number == len(lines)
        axes.plot(
            x, y, label=label, color=_INK if last else _series_color(number - 1), linewidth=2.0 if last else 1.1,
            gid=f"{_SERIES_ID}{number}",
        )  # fmt: skip
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))


def _draw_calibration(name: str, curve: CalibrationCurve) -> _Drawing:
    """Draw the calibration curve: predicted probability against observed share, in bins of about equal size."""
    pairs = list(zip(curve.predicted, curve.observed, strict=True))
    predicted, observed = max(pairs, key=lambda pair: abs(pair[0] - pair[1]))

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], **_REFERENCE, label="perfect calibration")
        axes.plot(curve.predicted, curve.observed, color=_INK, marker="o", markersize=4.5, label="observed")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))

    words = (
        f"Calibration in {len(pairs)} bins: the mean error is {curve.error:.3f} on average. "
        f"Largest error: predicted {predicted:.2f}, observed {observed:.2f}."
    )
    return _draw_chart(name, words, "predicted probability", "observed share of malignant", paint)


def _draw_spread(name: str, labels: Labels, values: NDArray[np.floating], test: NDArray[np.floating]) -> _Drawing:
    """Draw histograms of the OOF probabilities by class and of the test probabilities."""

    def paint(axes: Axes) -> None:
        parts = [values[labels == number] for number in (0, 1)]
        weights = [np.full(len(part), 100 / len(values)) for part in parts]
        colours = [_CODES[title] for title in CLASS_NAMES]
        axes.hist(
            parts, _HISTOGRAM_EDGES, weights=weights, stacked=True, color=colours, label=list(CLASS_NAMES), rwidth=0.86
        )
        axes.hist(
            test,
            _HISTOGRAM_EDGES,
            weights=np.full(len(test), 100 / len(test)),
            histtype="step",
            color=_INK,
            label="test",
        )

    unsure = [_percent(np.mean((part > 0.1) & (part < 0.9))) for part in (values, test)]
    called = [_percent(np.mean(part >= THRESHOLD)) for part in (values, test)]
    words = (
        f"Of the training patches {unsure[0]} have a probability between 0.1 and 0.9, of the test patches {unsure[1]}; "
        f"{called[0]} and {called[1]} are classified as malignant."
    )
    return _draw_chart(name, words, "probability of malignant", "patches, in %", paint)


def _draw_slides(name: str, aucs: Sequence[float], overall: float) -> _Drawing:
    """Draw the AUC of each slide in ascending order, with the AUC of all patches as a reference line."""
    ranked = np.sort(np.asarray(aucs, dtype=float))

    def paint(axes: Axes) -> None:
        axes.axhline(overall, **_REFERENCE, label="all patches together")
        axes.plot(np.arange(1, len(ranked) + 1), ranked, "o", color=_series_color(0), markersize=3.5, label="a slide")
        axes.locator_params("x", integer=True)

    low, middle, high = np.quantile(ranked, [0, 0.5, 1])
    words = f"AUC within {len(ranked)} slides: {low:.4f} to {high:.4f}, median {middle:.4f}."
    return _draw_chart(name, words, "slides, lowest first", "AUC within the slide", paint)


def _draw_intervals(name: str, titles: Sequence[str], figures: Sequence[OverallMetrics], auc_name: str) -> _Drawing:
    """Draw the AUC of each run with its 95 % interval, one row per run.

    Args:
        name: unique name of the chart on the page.
        titles: the names of the runs.
        figures: the metrics of each run.
        auc_name: the name of their AUC.
    """

    def paint(axes: Axes) -> None:
        for place, one in enumerate(figures):
            axes.plot(
                one.auc_interval, [place, place], color=_series_color(place), linewidth=2.5, solid_capstyle="round"
            )
            axes.plot(one.auc, place, "o", color=_series_color(place), markersize=7)
        axes.set(yticks=range(len(titles)), yticklabels=[_shorten(title) for title in titles])
        axes.set_ylim(len(titles) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")

    spans = [
        f"{title} {one.auc:.4f} ({one.auc_interval[0]:.4f} to {one.auc_interval[1]:.4f})"
        for title, one in zip(titles, figures, strict=True)
    ]
    words = f"{auc_name} with intervals of 95 %: {', '.join(spans)}."
    return _draw_chart(name, words, auc_name, "", paint, 0.8 + 0.35 * len(titles))


def _shorten(title: str) -> str:
    """Shorten a title to its last `_TITLE_LENGTH` characters."""
    return title if len(title) <= _TITLE_LENGTH else "…" + title[1 - _TITLE_LENGTH :]


def _percent(share: float | np.floating) -> str:
    """Format a share of 0..1 as a whole percentage."""
    return f"{100 * share:.0f} %"

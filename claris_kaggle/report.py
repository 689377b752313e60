"""One self-contained HTML page of one or several runs: nothing in it is fetched from elsewhere."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from claris_kaggle import __version__
from claris_kaggle.ensemble import Run, load_run
from claris_kaggle.errors import UsageError
from claris_kaggle.files import read_json, write_text
from claris_kaggle.paths import RunDir
from claris_kaggle.predictions import run_metrics
from claris_kaggle.submission import label_runs

TEMPLATE = "report.html.jinja"
# Okabe and Ito's colours, which the colour-blind can tell apart as well.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def write_report(run_dirs: Sequence[RunDir], out: Path) -> Path:
    """Put the page of the runs in `run_dirs` in place as `out`, and return its path.

    Raises:
        UsageError: the name does not end in .html.
        ClarisError: a run is not predicted, or a file of it is faulty.
    """
    from jinja2 import Environment, PackageLoader

    if out.suffix not in (".html", ".htm"):
        raise UsageError(f"{out}: not a name of a page", "a name that ends in .html is needed")
    runs = [load_run(run_dir) for run_dir in run_dirs]
    names = label_runs(run_dirs)
    sections = [describe(run, name, one) for run, name, one in zip(runs, names, run_dirs, strict=True)]
    environment = Environment(loader=PackageLoader("claris_kaggle", ""), autoescape=True, trim_blocks=True)
    page = environment.get_template(TEMPLATE).render(runs=sections, roc=draw_roc(names, runs), version=__version__)
    write_text(out, page)
    return out


def describe(run: Run, name: str, run_dir: RunDir) -> dict[str, Any]:
    """What the page says of one run."""
    histories = read_histories(run_dir)
    return {
        "name": name,
        "metrics": run_metrics(run.oof, run.slides),
        "confusion": confusion(run),
        "config": read_json(run_dir.config) if run_dir.config.exists() else {},
        "curves": draw_curves(histories) if histories else "",
        "histogram": draw_histogram(run),
        "seconds": sum(float(table["seconds"].sum()) for table in histories.values()),
        "test_patches": len(run.test.ids),
    }


def read_histories(run_dir: RunDir) -> dict[int, pd.DataFrame]:
    """The history of each fold that has one."""
    paths = sorted(run_dir.root.glob("fold[0-9]*/history.csv"), key=lambda path: int(path.parent.name[4:]))
    return {int(path.parent.name[4:]): pd.read_csv(path) for path in paths}


def confusion(run: Run) -> dict[str, int]:
    """How many patches of each label stand on each side of 0.5."""
    malignant, called = run.oof.labels == 1, run.oof.probabilities >= 0.5
    return {
        "true_malignant": int((malignant & called).sum()),
        "missed_malignant": int((malignant & ~called).sum()),
        "false_malignant": int((~malignant & called).sum()),
        "true_benign": int((~malignant & ~called).sum()),
    }


def new_axes(title: str, across: str, up: str) -> tuple[Any, Any]:
    """A figure with one titled pair of axes, made without pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.9), layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=across, ylabel=up)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def to_svg(figure: Any) -> str:
    """The figure as SVG text, the same for the same figure."""
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "claris", "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def draw_roc(names: Sequence[str], runs: Sequence[Run]) -> str:
    """ROC curves of the runs' OOF predictions."""
    from sklearn.metrics import roc_curve

    figure, axes = new_axes("ROC, out of fold", "false positive rate", "true positive rate")
    for number, (name, run) in enumerate(zip(names, runs, strict=True)):
        false, true, _ = roc_curve(run.oof.labels, run.oof.probabilities)
        keep = np.unique(np.linspace(0, len(false) - 1, 500).astype(int))
        axes.plot(false[keep], true[keep], color=COLOURS[number % len(COLOURS)], label=name)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="chance")
    axes.legend(frameon=False)
    return to_svg(figure)


def draw_curves(histories: dict[int, pd.DataFrame]) -> str:
    """Validation AUC over the epochs, a line a fold."""
    figure, axes = new_axes("Validation AUC by epoch", "epoch", "AUC")
    for fold, table in histories.items():
        axes.plot(table["epoch"], table["auc"], color=COLOURS[fold % len(COLOURS)], marker="o", label=f"fold {fold}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    return to_svg(figure)


def draw_histogram(run: Run) -> str:
    """How the OOF probabilities of the two classes spread."""
    figure, axes = new_axes("Out-of-fold probabilities", "probability of malignant", "patches")
    parts = [run.oof.probabilities[run.oof.labels == label] for label in (0, 1)]
    axes.hist(parts, bins=np.linspace(0, 1, 21), color=COLOURS[:2], label=["benign", "malignant"])
    axes.legend(frameon=False)
    return to_svg(figure)

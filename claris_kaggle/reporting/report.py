"""Write one self-contained HTML page about one or several runs. It loads no external resources."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.console import Progress, format_duration
from claris_kaggle.core.errors import ClarisError, TableError
from claris_kaggle.core.files import read_json, write_text
from claris_kaggle.core.paths import DataDir, FoldRunDir, RunDir, recognise_fold, require_suffix, shorten_path
from claris_kaggle.data import tables
from claris_kaggle.data.arrays import THRESHOLD
from claris_kaggle.ensembling.comparison import RunComparison, compare_runs
from claris_kaggle.ensembling.ensemble_runs import describe_run
from claris_kaggle.ensembling.ledger import Agreement, LedgerEntry, describe_agreement, read_ledger, sort_best_first
from claris_kaggle.ensembling.runs import Run, add_slides, explain_split, label_runs, load_run, name_auc
from claris_kaggle.evaluation.run_metrics import (
    FoldMetrics,
    OverallMetrics,
    SlideMetrics,
    is_generated_run,
    run_metrics,
    slide_metrics,
)
from claris_kaggle.reporting import charts, gallery
from claris_kaggle.reporting.pictures import MAP_LIMITS
from claris_kaggle.reporting.templates import render_template
from claris_kaggle.version import __version__

_REPORT_TEMPLATE = "report.html.jinja"
_PLOTTED_COLUMNS = ("epoch", "train_loss", "valid_loss", "auc", "seconds", "images_per_second")
_REPORTED_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "albumentations",
    "numpy",
    "pandas",
    "scikit-learn",
    "scipy",
    "matplotlib",
)
# The AUC of a slide with fewer patches of a class is too uncertain to show.
_FEWEST = 3
_MOST_SLIDES = 300


@dataclass(frozen=True, kw_only=True)
class _FoldRow(FoldMetrics):
    """Metrics of a fold with its class balance, slides and training time. Unknown values are None.

    Attributes:
        malignant: share of malignant patches.
        slides: number of slides.
        epochs: number of epochs.
        seconds: training time.
        rate: training rate in images per second.
    """

    malignant: float
    slides: int | None
    epochs: int | None = None
    seconds: float | None = None
    rate: float | None = None


@dataclass(frozen=True)
class _Confusion:
    """The confusion matrix at a threshold of 0.5, in patches."""

    true_malignant: int
    missed_malignant: int
    false_malignant: int
    true_benign: int


@dataclass(frozen=True)
class _SlideTable:
    """The table of slides.

    Attributes:
        rows: the hardest slides, at most `_MOST_SLIDES`.
        total: number of slides.
        ranked: number of slides with at least `fewest` patches of each class.
        fewest: see `ranked`.
        chart: the AUC of the ranked slides; None if there are fewer than two.
    """

    rows: list[SlideMetrics]
    total: int
    ranked: int
    fewest: int
    chart: charts._Drawing | None


@dataclass(frozen=True)
class _ChosenPatches:
    """The most confident errors, the least certain patches, and the reasons why some have no maps."""

    errors: list[gallery._Specimen]
    unsure: list[gallery._Specimen]
    reasons: list[str]


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """The origin of a run. Unknown values are None or empty.

    Attributes:
        config: the training config.
        digests: SHA-256 of the predictions, by file name.
        split: the content of the JSON beside the fold file.
        has_folds: True if the run has a fold file.
        out_of_fold_verified: True if a fold file or an ensemble shows that the predictions are out-of-fold.
        views: number of views of the predictions.
        ensemble: the evidence of an ensemble.
        test_patches: number of test patches.
        slide_count: number of slides.
        seconds: training time of all folds.
        rate: training rate in images per second.
        cost: the estimated cost of the network and the run on two T4s, as text; empty if unknown.
    """

    config: Mapping[str, object]
    digests: dict[str, str]
    split: Mapping[str, object]
    has_folds: bool
    out_of_fold_verified: bool
    views: object
    ensemble: object
    test_patches: int
    slide_count: int | None
    seconds: float | None
    rate: float | None
    cost: str


@dataclass(frozen=True, kw_only=True)
class _Section:
    """The section of the page about one run.

    Attributes:
        name: name of the run.
        typed: path of the run as typed in a shell.
        anchor: the ids of the parts of the section start with this.
        scored: what the AUC is of, as text.
        holdout: True if the predictions are of a holdout.
        overall, folds, confusion: metrics.
        learning, roc, corner, precision, calibration, spread: charts; `corner` enlarges the top left of `roc`, and is
            None if no curve passes there.
        slides: the table of slides; None if they are unknown.
        patches: the patches to show.
        origin: the origin of the run.
    """

    name: str
    typed: str
    anchor: str
    scored: str
    holdout: bool
    overall: OverallMetrics
    folds: list[_FoldRow]
    confusion: _Confusion
    learning: list[charts._Drawing]
    roc: charts._Drawing
    corner: charts._Drawing | None
    precision: charts._Drawing
    calibration: charts._Drawing
    spread: charts._Drawing
    slides: _SlideTable | None
    patches: _ChosenPatches
    origin: _Origin


@dataclass(frozen=True)
class _ConfigTable:
    """The names of the runs that have a config, and the fields that differ, with one value per run."""

    names: list[str]
    fields: dict[str, list[object]]


@dataclass(frozen=True)
class _ComparedRuns:
    """The comparison of the runs, with its charts and the differences of their configs.

    `auc_name` is the name of their AUC. `learning` is None unless two runs have their histories. `corner` is None if no
    ROC curve crosses half of it.
    """

    found: RunComparison
    auc_name: str
    chart: charts._Drawing
    roc: charts._Drawing
    corner: charts._Drawing | None
    learning: charts._Drawing | None
    configs: _ConfigTable


@dataclass(frozen=True)
class _LedgerTable:
    """The lines of the ledger, best first, and their agreement with the OOF metrics."""

    lines: list[LedgerEntry]
    agreement: Agreement


def write_report(
    run_dirs: Sequence[RunDir | Path | str],
    out: Path | str,
    *,
    data: DataDir | Path | str | None = None,
    cache: Path | str | None = None,
    ledger: Path | str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Path:
    """Write the report of the runs in `run_dirs` to `out`, and return that path.

    Args:
        run_dirs: one or more predicted runs, or folders of one predicted fold.
        out: the HTML file to write.
        data: the competition's folder, to read the patches that are shown. Without `data` and `cache` the page has
            no images.
        cache: a cache folder of packed patches, used before `data`.
        ledger: the record of submissions, shown if it has entries.
        columns: columns of other tools' predictions, as from `parse_columns`.
    Raises:
        UsageError: the name of `out` does not end in .html or .htm, or a run is given twice.
        ClarisError: a run is not predicted, or one of its files is invalid.
    """
    folders, out = [recognise_fold(run_dir) for run_dir in run_dirs], Path(out)
    data = None if data is None else DataDir.at(data)
    cache = None if cache is None else Path(cache)
    require_suffix(out, ".html", ".htm")
    names = label_runs(folders)
    runs = [replace(load_run(run_dir, columns), name=name) for run_dir, name in zip(folders, names, strict=True)]
    runs = add_slides(runs, data.slides if data else None)
    sections = []
    with Progress(str(out), len(runs), "runs") as progress:
        for number, (run, run_dir) in enumerate(zip(runs, folders, strict=True), 1):
            sections.append(_describe_section(run, run_dir, f"run{number}", data, cache))
            progress.update(1)
    lines = read_ledger(Path(ledger)) if ledger else []
    page = render_template(
        _REPORT_TEMPLATE,
        runs=sections,
        comparison=_compare_sections(runs, folders, sections) if len(runs) > 1 else None,
        ledger=_LedgerTable(sort_best_first(lines), describe_agreement(lines)) if lines else None,
        versions=_find_versions(),
        cautions=explain_split(runs),
        generated=any(map(is_generated_run, folders)) or (data is not None and data.generated.exists()),
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        pictures=data is not None or cache is not None,
        map_limits=MAP_LIMITS,
    )
    write_text(out, page)
    return out


def _describe_section(run: Run, run_dir: RunDir, anchor: str, data: DataDir | None, cache: Path | None) -> _Section:
    """Return the values of the page's section about one run. The ids of its parts start with `anchor`."""
    oof, histories = run.oof, _read_histories(run_dir)
    found = run_metrics(oof, run.slides, run.measured)
    whole = ("all", oof.labels, oof.probabilities)
    parts = charts._by_fold(oof.labels, oof.probabilities, oof.fold)
    roc, corner = charts._draw_roc(anchor, parts, whole)
    return _Section(
        name=run.name,
        typed=_format_typed_path(run_dir.root),
        anchor=anchor,
        scored=_describe_scored(run),
        holdout=run.is_holdout,
        overall=found.overall,
        folds=[_describe_fold(run, one, histories.get(one.fold)) for one in found.folds],
        confusion=_count_confusion(run),
        learning=charts._draw_learning(anchor, histories) if histories else [],
        roc=roc,
        corner=corner,
        precision=charts._draw_precision(f"{anchor}-precision", parts, whole),
        calibration=charts._draw_calibration(f"{anchor}-calibration", found.calibration),
        spread=charts._draw_spread(f"{anchor}-spread", oof.labels, oof.probabilities, run.test.probabilities),
        slides=_describe_slides(run, anchor, found.overall.auc) if run.slides else None,
        patches=_choose_patches(run, run_dir, gallery._make_reader(oof.ids, data, cache)),
        origin=_describe_origin(run, run_dir, histories),
    )


def _describe_scored(run: Run) -> str:
    """Return what the AUC of a run is of."""
    if run.is_holdout:
        return "AUC of one holdout, without folds"
    return f"OOF AUC of fold {run.oof.fold[0]} only" if run.has_one_group else "OOF AUC, all folds pooled"


def _format_typed_path(path: Path) -> str:
    """Return the path quoted for a shell, relative to the current folder if it is inside."""
    return shlex.quote(str(shorten_path(path)))


def _read_histories(run_dir: RunDir) -> dict[int, pd.DataFrame]:
    """Return the training history of each fold that has one, in the order of the folds.

    Raises:
        TableError: a history is cut off, or has values that are not numbers.
    """
    found = {}
    for number, fold_dir in run_dir.fold_dirs().items():
        path = fold_dir.history
        if not path.exists():
            continue
        table = tables.read_table(
            path, _PLOTTED_COLUMNS, ended=True, others=True, hint="Remove it, or train that fold again"
        )
        try:
            found[number] = table.astype(float)
        except ValueError as error:
            raise TableError(
                f"{path}: it has values that are not numbers", "", "Remove it, or train that fold again"
            ) from error
    return found


def _describe_fold(run: Run, metrics: FoldMetrics, history: pd.DataFrame | None) -> _FoldRow:
    """Return the metrics of a fold with its class balance, slides and training time."""
    inside = run.oof.fold == metrics.fold
    row = _FoldRow(
        **vars(metrics),
        malignant=float(run.oof.labels[inside].mean()),
        slides=len(np.unique(tables.number_texts(run.slides)[inside])) if run.slides else None,
    )
    if history is None:
        return row
    return replace(row, epochs=len(history), seconds=float(history["seconds"].sum()), rate=_mean_rate([history]))


def _mean_rate(histories: Sequence[pd.DataFrame]) -> float:
    """Return the mean training rate in images per second over all epochs, weighted by the time of each epoch."""
    epochs = pd.concat(histories)
    seconds = epochs["seconds"].to_numpy()
    return float(np.average(epochs["images_per_second"], weights=seconds if seconds.sum() > 0 else None))


def _count_confusion(run: Run) -> _Confusion:
    """Return the confusion matrix at a threshold of 0.5."""
    malignant, called = run.oof.labels == 1, run.oof.probabilities >= THRESHOLD
    return _Confusion(
        true_malignant=int((malignant & called).sum()),
        missed_malignant=int((malignant & ~called).sum()),
        false_malignant=int((~malignant & called).sum()),
        true_benign=int((~malignant & ~called).sum()),
    )


def _describe_slides(run: Run, anchor: str, overall: float) -> _SlideTable:
    """Return the table of slides, hardest first, and the chart of the slides with enough patches of both classes."""
    rows = slide_metrics(run.oof, run.slides)
    enough = [row for row in rows if min(row.malignant, row.patches - row.malignant) >= _FEWEST]
    ranked = [row.auc for row in enough if row.auc is not None]
    chart = charts._draw_slides(f"{anchor}-slides", ranked, overall) if len(ranked) > 1 else None
    return _SlideTable(rows[:_MOST_SLIDES], len(rows), len(ranked), _FEWEST, chart)


def _choose_patches(run: Run, run_dir: RunDir, reader: gallery._Reader | None) -> _ChosenPatches:
    """Return the most confident errors and the least certain patches, with maps if there are pixels and weights."""
    chosen = gallery._confident_errors(run.oof), gallery._least_certain(run.oof)
    errors, unsure = (gallery._make_specimens(run.oof, rows, run.slides, reader) for rows in chosen)
    if reader is None:
        return _ChosenPatches(errors, unsure, [])
    (errors, faults), (unsure, more) = (gallery._explain_all(shown, run_dir, reader) for shown in (errors, unsure))
    return _ChosenPatches(errors, unsure, list(dict.fromkeys([*faults, *more])))


def _describe_origin(run: Run, run_dir: RunDir, histories: Mapping[int, pd.DataFrame]) -> _Origin:
    """Return the origin of a run: config, split, training time and digests."""
    about = describe_run(run_dir)
    metrics = read_json(run_dir.metrics) if run_dir.metrics.exists() else {}
    split_path, whole = run_dir.folds.with_suffix(".json"), not isinstance(run_dir, FoldRunDir)
    return _Origin(
        config=about.config or {},
        digests={"oof.csv": about.oof_sha256, "test.csv": about.test_sha256},
        split=read_json(split_path) if split_path.exists() else {},
        has_folds=run_dir.folds.exists(),
        out_of_fold_verified=run_dir.folds.exists() or "ensemble" in metrics,
        views=metrics.get("views"),
        ensemble=metrics.get("ensemble"),
        test_patches=len(run.test.ids),
        slide_count=len(set(run.slides)) if run.slides else None,
        seconds=sum(float(table["seconds"].sum()) for table in histories.values()) if histories else None,
        rate=_mean_rate(list(histories.values())) if histories else None,
        cost=_describe_run_cost(about.config, run, metrics.get("views")) if whole and about.config else "",
    )


def _describe_run_cost(found: Mapping[str, object], run: Run, views: object) -> str:
    """Return the estimated cost of the network and the run on two T4s as text, or an empty text if it is not known."""
    from claris_kaggle.models.cost import run_cost

    try:
        config = TrainConfig.from_json(found, run.name)
        cost = run_cost(config)
    except ClarisError:  # the run of another version, or a network that is not known here
        return ""
    folds = len(np.unique(run.oof.fold))
    hours = cost.hours(
        train_patches=len(run.oof.ids), epochs=config.epochs, folds=folds, views=views if isinstance(views, int) else 1,
        predict_patches=len(run.test.ids), all_folds=folds,
    )  # fmt: skip
    return f"{cost.gflop:.3g} GFLOP an image; about {format_duration(3600 * hours)} on two T4s (estimated)"


def _compare_sections(runs: Sequence[Run], run_dirs: Sequence[RunDir], sections: Sequence[_Section]) -> _ComparedRuns:
    """Return the values of the page's comparison of runs."""
    names = [run.name for run in runs]
    curves = [(run.name, run.oof.labels, run.oof.probabilities) for run in runs]
    read = {name: _read_histories(run_dir) for name, run_dir in zip(names, run_dirs, strict=True)}
    histories = {name: tables for name, tables in read.items() if tables}
    roc, corner = charts._draw_roc("compare", curves)
    auc_name = name_auc(run.is_holdout for run in runs)
    return _ComparedRuns(
        found=compare_runs(runs),
        auc_name=auc_name,
        chart=charts._draw_intervals("compare-auc", names, [section.overall for section in sections], auc_name),
        roc=roc,
        corner=corner,
        learning=charts._draw_learning_of_runs("compare-learning", histories) if len(histories) > 1 else None,
        configs=_compare_configs({one.name: one.origin.config for one in sections if one.origin.config}),
    )


def _compare_configs(configs: Mapping[str, Mapping[str, object]]) -> _ConfigTable:
    """Return the names of the runs that have a config, and the fields that differ, with one value per run."""
    fields = dict.fromkeys(name for config in configs.values() for name in config if not name.endswith("_sha256"))
    values = {field: [config.get(field, "–") for config in configs.values()] for field in fields}
    values["pseudo-labels"] = ["yes" if config.get("extra_sha256") else "no" for config in configs.values()]
    return _ConfigTable(list(configs), {name: row for name, row in values.items() if row != row[:1] * len(row)})


def _find_versions() -> dict[str, str]:
    """Return the versions of the installed packages. The runs may have been made with others."""
    found = {"claris": __version__, "Python": platform.python_version()}
    for name in _REPORTED_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not here"
    return found

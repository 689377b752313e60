"""Read the runs of an ensemble, warn about suspicious ones, and reject incompatible ones.

Only runs with the same fold file can be scored together. With different folds, a validation patch of one run may be
a training patch of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.core.console import format_command, log_info
from claris_kaggle.core.errors import RunError, TableError, UsageError, format_count, name_few
from claris_kaggle.core.files import sha256_bytes, sha256_file
from claris_kaggle.core.paths import FoldRunDir, RunDir, recognise_fold, shorten_path
from claris_kaggle.data.fold_file import SPLIT_BY_PATCH, Folds, read_folds
from claris_kaggle.data.tables import read_slides
from claris_kaggle.evaluation.auc_intervals import MeasuredAuc, measure
from claris_kaggle.evaluation.metrics import midranks
from claris_kaggle.evaluation.predictions import Oof, TestPredictions, check_oof, read_oof, read_test

# An OOF AUC above this on real patches suggests leaked labels.
_SUSPICIOUS_AUC = 0.9995
_UNKNOWN_SPLIT = (
    "it is unknown whether the holdout shares slides with the training patches; if it does, the holdout AUC is too high"
)
_ALL_FOLDS_HINT = "Run claris train until all folds are finished, then claris predict"
_OTHER_TOOLS_HINT = (
    "If the predictions are from another tool, save them as one oof.csv (id,label,fold,probability) and one test.csv "
    "(id,probability)"
)
_UNKNOWN_FOLDS = (
    "it is unknown whether the folds are by slide; if a slide is in two folds, the OOF AUC is too high (published: "
    "0.996 by patch, 0.967 by slide, 0.97 on the leaderboard); claris fetch --slides downloads a slide map, which "
    "shows whether they are"
)
# Two runs disagree on test patches if their rank correlation there is below this fraction of that out of fold.
_MIN_CORRELATION_SHARE = 0.5
# A larger difference of the mean probability between OOF and test patches suggests two different scales.
_MAX_MEAN_DIFFERENCE = 0.3


@dataclass(frozen=True)
class Run:
    """The predictions of a finished run.

    Attributes:
        name: name of the folder.
        oof: OOF predictions of all folds.
        test: test predictions, the mean over all folds.
        slides: the slide of each OOF patch, or None if the fold file has no slides.
        folds: the content of the fold file, or None if there is none.
        has_fold_file: True if a fold file says how the patches were split.
        measured: the OOF AUC with the data for intervals and comparisons, computed at the first use.
    """

    name: str
    oof: Oof
    test: TestPredictions
    slides: list[str] | None = None
    folds: Folds | None = None
    has_fold_file: bool = False

    @cached_property
    def has_one_group(self) -> bool:
        """True if all predictions are of one fold, or without fold numbers: weights cannot be fitted across folds."""
        return bool(self.oof.fold.min() == self.oof.fold.max())

    @property
    def is_holdout(self) -> bool:
        """True if the predictions are without fold numbers: those of a single holdout."""
        return self.has_one_group and not self.oof.has_folds

    @cached_property
    def by_slide(self) -> bool:
        """True if the slides are known and each is in one fold."""
        if self.slides is None:
            return False
        return len(set(zip(self.slides, self.oof.fold.tolist(), strict=True))) == len(set(self.slides))

    @cached_property
    def measured(self) -> MeasuredAuc:
        """The OOF AUC with the data for intervals and comparisons, computed at the first use.

        Raises:
            DataError: there are fewer than two patches of a class.
        """
        return measure(self.oof.labels, self.oof.probabilities, self.slides)


def name_auc(are_holdouts: Iterable[bool]) -> str:
    """Return the name of the AUC of some runs: `holdout AUC`, `OOF AUC`, or `AUC` if only some are holdouts."""
    kinds = {"holdout AUC" if is_holdout else "OOF AUC" for is_holdout in are_holdouts}
    return kinds.pop() if len(kinds) == 1 else "AUC"


def explain_split(runs: Sequence[Run]) -> list[str]:
    """Return a sentence for each reason why the AUC of some of the runs is too high, or may be."""
    documented = [run.oof for run in runs if run.has_fold_file]
    found = {_explain_split_of(run, documented) for run in runs if not run.by_slide}
    return [text for text in (_UNKNOWN_SPLIT, _UNKNOWN_FOLDS, SPLIT_BY_PATCH) if text in found]


def _explain_split_of(run: Run, documented: Sequence[Oof]) -> str:
    """Return why the AUC of a run that is not split by slide is too high, or may be.

    Args:
        run: the run.
        documented: the predictions of the runs that have a fold file. It also explains other runs with the same folds.
    """
    if run.is_holdout:
        return _UNKNOWN_SPLIT
    is_known = run.slides or run.has_fold_file or any(_has_same_folds(run.oof, oof) for oof in documented)
    return SPLIT_BY_PATCH if is_known else _UNKNOWN_FOLDS


def load_run(
    run_dir: RunDir | Path | str,
    columns: Mapping[str, str] | None = None,
    known_folds: dict[str, Folds] | None = None,
) -> Run:
    """Return the predictions of the run in `run_dir`. Checks them against its fold file, if it has one.

    Args:
        run_dir: the run, the folder of one of its folds, or a folder with `oof.csv` and `test.csv` (or
            `submission.csv`) of another tool.
        columns: as in `read_oof`.
        known_folds: folds by the SHA-256 of their files; those of this run are added. Runs of the same split have the
            same fold file, which is then read once.
    Raises:
        RunError: the run is not predicted yet.
        TableError: a file is invalid, belongs to a different fold file, or has fewer than two patches of a class.
    """
    run_dir = recognise_fold(run_dir)
    missing = [path.name for path in (run_dir.oof, run_dir.predicted_test) if not path.exists()]
    if missing and isinstance(run_dir, FoldRunDir):
        hint = "Run claris train, then claris predict"
        if run_dir.number in run_dir.run.finished_folds():
            hint = f"Run {format_command('predict', '--data', 'DIR', '--run', run_dir.run.root)}"
        found = run_dir.describe_missing(" and ".join(missing))
        raise RunError(found, "expected the predictions of this fold", hint)
    if missing:
        expected = "expected the predictions of all its folds"
        raise run_dir.missing_error(" and ".join(missing), expected, _advise_on_run(run_dir))
    oof, test = read_oof(run_dir.oof, columns), read_test(run_dir.predicted_test, columns)
    malignant = int(oof.labels.sum())
    if not 2 <= malignant <= len(oof.ids) - 2:
        found = f"{run_dir.oof}: {malignant:,} malignant and {len(oof.ids) - malignant:,} benign patches"
        raise TableError(found, "a score needs at least two of each")
    if not run_dir.folds.exists():
        return Run(run_dir.root.name, oof, test)
    known_folds = {} if known_folds is None else known_folds
    digest = _digest_fold_file(run_dir.folds)
    folds = known_folds.get(digest) or read_folds(run_dir.folds, dict(zip(oof.ids, oof.labels.tolist(), strict=True)))
    if isinstance(run_dir, FoldRunDir):
        slides = _check_single_fold(oof, folds, run_dir)
        return Run(run_dir.root.name, oof, test, slides, has_fold_file=True)
    if oof.ids == folds.ids and (oof.fold.min() == oof.fold.max() or _is_same_partition(oof.fold, folds.fold)):
        oof = replace(oof, fold=folds.fold, has_folds=True)
    check_oof(oof, folds.ids, folds.labels, folds.fold, run_dir.oof)
    known_folds[digest] = replace(folds, ids=oof.ids)  # a second list of ids would take 20 MB
    return Run(run_dir.root.name, oof, test, folds.slides, known_folds[digest], has_fold_file=True)


def _check_single_fold(oof: Oof, folds: Folds, run_dir: FoldRunDir) -> list[str] | None:
    """Check the predictions of one fold against the fold file of its run, and return the slide of each patch, if known.

    Raises:
        TableError: the predictions are not those of the validation patches of this fold.
    """
    rows = folds.valid_rows(run_dir.number)
    check_oof(oof, [folds.ids[row] for row in rows], folds.labels[rows], folds.fold[rows], run_dir.oof)
    return [folds.slides[row] for row in rows] if folds.slides else None


def _digest_fold_file(path: Path) -> str:
    """Return the SHA-256 of a fold file and of the JSON next to it."""
    about = path.with_suffix(".json")
    return sha256_file(path) + (sha256_file(about) if about.exists() else "")


def _advise_on_run(run_dir: RunDir) -> str:
    """Return what to do about a folder without predictions of all folds."""
    if run_dir.root.is_dir() and not run_dir.config.exists() and not run_dir.finished_folds():
        tables = sorted(path.name for path in run_dir.root.glob("*.csv"))
        found = f"; the folder has {name_few(tables)}" if tables else ""
        return f"{_ALL_FOLDS_HINT}. {_OTHER_TOOLS_HINT}{found}"
    return "; ".join(filter(None, [_ALL_FOLDS_HINT, suggest_single_fold(run_dir)]))


def suggest_single_fold(run_dir: RunDir, data: Path | str = "DIR", out: str = "") -> str:
    """Return how to use the first finished fold of a run alone; empty if none is finished.

    Args:
        run_dir: the run.
        data: the data folder in the commands.
        out: the submission to make of that fold; empty to only name the folder to give in place of the run.
    """
    done = run_dir.finished_folds()
    if not done:
        return ""
    first = run_dir.fold(min(done))
    is_predicted = first.oof.exists() and first.test.exists()
    steps = [] if is_predicted else [format_command("predict", "--data", data, "--run", run_dir.root)]
    if out:
        steps.append(format_command("ensemble", first.root, "--data", data, "--out", out))
    else:
        steps.append(f"give {shorten_path(first.root)} in place of the run")
    return f"for fold {min(done)} alone: {', then '.join(steps)}"


def _has_same_folds(one: Oof, other: Oof) -> bool:
    """Return True if both have the same patches in the same folds, under any numbers."""
    return one.ids == other.ids and _is_same_partition(one.fold, other.fold)


def _is_same_partition(one: NDArray[np.int64], other: NDArray[np.int64]) -> bool:
    """Return True if both put the same patches together, under any numbers."""
    pairs = len(set(zip(one.tolist(), other.tolist(), strict=True)))
    return pairs == len(np.unique(one)) == len(np.unique(other))


def _load_runs(
    run_dirs: Sequence[RunDir], *, common_ids: bool = False, columns: Mapping[str, str] | None = None
) -> list[Run]:
    """Load runs with distinct names, ready to be combined. Slides of one run are used for all.

    Only the first run that has a fold file keeps its content.

    Args:
        run_dirs: the runs.
        common_ids: keep only the OOF patches that all runs have, and log how many each run loses.
        columns: as in `read_oof`.
    Raises:
        UsageError: a run is given twice.
        RunError: the runs have different folds, labels or test patches.
        ClarisError: as in `load_run`.
    """
    runs: list[Run] = []
    named = zip(label_runs(run_dirs), run_dirs, strict=True)
    known_folds: dict[str, Folds] = {}
    loaded: Iterable[Run] = (replace(load_run(run_dir, columns, known_folds), name=name) for name, run_dir in named)
    for run in _keep_common(list(loaded)) if common_ids else loaded:
        _require_comparable([*runs[:1], run])
        # All runs share one list of ids. Separate lists of twenty runs would take most of the memory.
        first = runs[0] if runs else run
        oof, test = replace(run.oof, ids=first.oof.ids), replace(run.test, ids=first.test.ids)
        folds = None if any(one.folds for one in runs) else run.folds
        runs.append(replace(run, oof=oof, test=test, folds=folds))
    return _share_folds(_share_slides(runs))


def _keep_common(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with the OOF patches that all of them have.

    With a smaller holdout or single fold among them, these patches are one group, without the folds of the other runs.

    Raises:
        RunError: they share too few patches.
    """
    shared = sorted(set.intersection(*(set(run.oof.ids) for run in runs)))
    kept = []
    for run in runs:
        rows = np.searchsorted(np.array(run.oof.ids), np.array(shared)) if shared else np.array([], dtype=np.int64)
        malignant = int(run.oof.labels[rows].sum())
        if not 2 <= malignant <= len(shared) - 2:
            found = f"{format_count(len(shared), 'OOF id')} in all runs, {malignant:,} of them malignant"
            raise RunError(found, "a score needs at least two patches of each class", "Remove the run that differs")
        if len(shared) < len(run.oof.ids):
            lost = sorted(set(run.oof.ids).difference(shared))
            counts = f"{len(shared):,} of {len(run.oof.ids):,} ids are in all runs"
            log_info(f"{run.name}: {counts}; not used: {name_few(lost)}")
        kept.append(_select_rows(run, rows) if len(shared) < len(run.oof.ids) else run)
    largest = max(len(run.oof.ids) for run in runs)
    small = next((run.oof for run in runs if run.has_one_group and len(run.oof.ids) < largest), None)
    if small is None:
        return kept
    fold = np.full(len(shared), small.fold[0])
    return [replace(run, oof=replace(run.oof, fold=fold), folds=None) for run in kept]


def _select_rows(run: Run, rows: NDArray[np.int64]) -> Run:
    """Return the run with some of its OOF patches. It keeps its fold file if every fold has patches of both classes."""
    oof = run.oof
    ids, labels, fold = [oof.ids[row] for row in rows], oof.labels[rows], oof.fold[rows]
    slides = [run.slides[row] for row in rows] if run.slides else None
    folds = run.folds and replace(
        run.folds, ids=ids, labels=labels, groups=[run.folds.groups[row] for row in rows], fold=fold
    )
    if folds and any(len(np.unique(labels[fold == number])) < 2 for number in range(run.folds.k if run.folds else 0)):
        folds = None
    return replace(run, oof=Oof(ids, labels, fold, oof.probabilities[rows], oof.has_folds), slides=slides, folds=folds)


def _share_folds(runs: Sequence[Run]) -> list[Run]:
    """Give all runs the same fold numbers: those of the first run that has folds.

    Numbers of the same partition may differ between runs. A run without fold numbers takes those of the others if it
    has all their patches, and this is logged.
    """
    leader = next((run for run in runs if not run.has_one_group), None)
    if leader is None:
        return list(runs)
    if unknown := [run.name for run in runs if run.has_one_group]:
        log_info(f"{name_few(unknown)}: no fold numbers; weights are scored by the folds of {leader.name}")
    same = [np.array_equal(run.oof.fold, leader.oof.fold) for run in runs]
    return [
        run if equal else replace(run, oof=replace(run.oof, fold=leader.oof.fold, has_folds=True))
        for run, equal in zip(runs, same, strict=True)
    ]


def _share_slides(runs: Sequence[Run]) -> list[Run]:
    """Give each run the slides of the first run over the same patches that knows them.

    A run that has them already is returned as it is, with what was measured of it.
    """
    shared = []
    for run in runs:
        slides = next((one.slides for one in runs if one.slides and one.oof.ids == run.oof.ids), None)
        shared.append(run if run.slides == slides else replace(run, slides=slides))
    return shared


def add_slides(runs: Sequence[Run], slide_map: Path | None) -> list[Run]:
    """Give each run without slides those of another run over the same patches, else those in the file, if it exists.

    The file is read once for all runs over the same patches.

    Raises:
        TableError: the file is not a slide map of these patches.
    """
    found = _share_slides(runs)
    if slide_map is None or not slide_map.exists():
        return found
    for number in range(len(found)):
        if not found[number].slides:
            found[number] = replace(found[number], slides=read_slides(slide_map, found[number].oof.ids))
            found = _share_slides(found)
    return found


def label_runs(run_dirs: Sequence[RunDir]) -> list[str]:
    """Return a distinct name for each run: the name of its folder, or the full path if two folders have that name.

    Raises:
        UsageError: a folder is given twice.
    """
    places = [run_dir.root.resolve() for run_dir in run_dirs]
    repeated = [str(one.root) for one, place in zip(run_dirs, places, strict=True) if places.count(place) > 1]
    if repeated:
        raise UsageError(f"{repeated[0]} is given more than once", "", "Give each run once")
    names = [place.name for place in places]
    return [name if names.count(name) == 1 else str(place) for name, place in zip(names, places, strict=True)]


def _require_comparable(runs: Sequence[Run]) -> None:
    """Reject runs with equal names, and runs with different ids, labels, folds or test patches.

    Raises:
        UsageError: two runs have the same name.
        RunError: two runs differ; the message names both and what differs.
    """
    names = [run.name for run in runs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError(f"{repeated[0]} is given more than once", "", "Give each run once")
    first = runs[0]
    for run in runs[1:]:
        faults = _explain_incomparable(first, run)
        if faults:
            found = f"{first.name} and {run.name} cannot be combined: {', '.join(faults)}"
            shared = len(set(first.oof.ids).intersection(run.oof.ids)) if first.oof.ids != run.oof.ids else 0
            hint = f"Use --common-ids to combine them on the {shared:,} training ids that both have" if shared else ""
            raise RunError(found, "expected runs over the same data and fold file", hint or "Remove one of them")


def _explain_incomparable(first: Run, run: Run) -> list[str]:
    """Return what differs between two runs, or an empty list if they can be scored together."""
    faults = []
    for noun, mine, yours in (("training", first.oof.ids, run.oof.ids), ("test", first.test.ids, run.test.ids)):
        if mine != yours:
            differ = sorted(set(mine) ^ set(yours))
            faults.append(f"{format_count(len(differ), noun + ' id')} in only one of them ({name_few(differ)})")
    if not faults:
        if np.any(first.oof.labels != run.oof.labels):
            faults.append("different labels")
        if not (first.has_one_group or run.has_one_group or _is_same_partition(first.oof.fold, run.oof.fold)):
            faults.append("different folds")
    return faults


def _require_labels(run: Run, ids: Sequence[str], labels: NDArray[np.int8]) -> None:
    """Reject a run with OOF patches that are not training patches, or with different labels.

    Args:
        run: the run; it may have fewer patches than `ids`.
        ids: ids of the training patches.
        labels: int8 of 0 and 1, the label of each id.
    Raises:
        RunError: the message names up to three such ids.
    """
    label_of = dict(zip(ids, labels.tolist(), strict=True))
    foreign = [name for name in run.oof.ids if name not in label_of]
    if foreign:
        found = f"{run.name}: {format_count(len(foreign), 'OOF id')} not in train_labels.csv ({name_few(foreign)})"
        hint = "Give the --data folder that the run was trained on"
        if {name.lower() for name in foreign} <= label_of.keys():
            hint = "The ids differ only in capital letters: write them as in train_labels.csv"
        raise RunError(found, "expected OOF predictions of training patches", hint)
    differ = [name for name, label in zip(run.oof.ids, run.oof.labels.tolist(), strict=True) if label_of[name] != label]
    if differ:
        found = f"{run.name}: {format_count(len(differ), 'label')} different from train_labels.csv ({name_few(differ)})"
        raise RunError(found, "1 is malignant", "Write its oof.csv again with the competition's labels")


def _drop_copies(runs: Sequence[Run]) -> tuple[list[Run], dict[str, str]]:
    """Drop runs with identical predictions.

    Returns:
        The remaining runs, sorted by the hash of their predictions so that the order of the input does not matter;
        and the name of the kept run for each dropped one.
    """
    first: dict[str, Run] = {}
    copies = {}
    for run in sorted(runs, key=lambda run: run.name):
        key = sha256_bytes(run.oof.probabilities.tobytes() + run.test.probabilities.tobytes())
        if key in first:
            copies[run.name] = first[key].name
        else:
            first[key] = run
    return [first[key] for key in sorted(first)], copies


def _examine_runs(runs: Sequence[Run]) -> dict[str, str]:
    """Return a warning for each suspicious run, by name."""
    inconsistent = _find_inconsistent_runs(runs)
    found = {run.name: _examine_run(run) or inconsistent.get(run.name, "") for run in runs}
    return {name: text for name, text in found.items() if text}


def _examine_run(run: Run) -> str:
    """Return a warning about the predictions of a run, or an empty string if there is none."""
    scored = "holdout" if run.is_holdout else "OOF"
    for kind, values in ((scored, run.oof.probabilities), ("test", run.test.probabilities)):
        if len(values) > 1 and values.min() == values.max():
            return f"every {kind} probability is {values[0]:g}"
    auc, (low, high) = run.measured.value, run.measured.estimate.interval
    figure = f"{scored} AUC {auc:.4f} ({low:.4f} to {high:.4f})"
    if high < 0.5 or auc < 1 - _SUSPICIOUS_AUC:
        return f"{figure}: it looks inverted: it may be the probability of benign"
    if auc > _SUSPICIOUS_AUC:
        return f"{figure}: implausibly high; the labels may have leaked into training"
    if low <= 0.5:
        return f"{figure}: not significantly better than chance"
    means = [float(values.mean(dtype=np.float64)) for values in (run.oof.probabilities, run.test.probabilities)]
    if abs(means[0] - means[1]) > _MAX_MEAN_DIFFERENCE:
        return (
            f"its mean probability is {means[0]:.3g} on {scored} and {means[1]:.3g} on test patches: the scales differ"
        )
    return ""


def _find_inconsistent_runs(runs: Sequence[Run]) -> dict[str, str]:
    """Return a warning for each run that agrees with most others out of fold but not on the test patches.

    The likely cause is a test.csv that is inverted or out of order.
    """
    if len(runs) < 2:
        return {}
    known = _correlate_columns([run.oof.probabilities for run in runs])
    seen = _correlate_columns([run.test.probabilities for run in runs])
    doubt = 3 / np.sqrt(len(runs[0].test.ids))  # few test patches give no clear result
    odd = (known > doubt) & (seen < _MIN_CORRELATION_SHARE * known - doubt)
    np.fill_diagonal(odd, val=False)
    found = {}
    for own, run in enumerate(runs):
        mine = odd[own]
        if mine.sum() > (len(runs) - 1) / 2:
            others = format_count(int(mine.sum()), "other run")
            found[run.name] = (
                f"its rank correlation with {others} is {known[own, mine].mean():z.2f} out of fold but "
                f"{seen[own, mine].mean():z.2f} on test patches: a test.csv may be inverted or out of order"
            )
    return found


def _correlate_columns(columns: Sequence[NDArray[np.floating]]) -> NDArray[np.float64]:
    """Return Spearman's correlation of each pair of columns, float64 [M, M]. It is 0 with a constant column."""
    if len(columns[0]) < 2:
        return np.zeros((len(columns), len(columns)))
    ranks = midranks(np.column_stack(columns)).T
    with np.errstate(invalid="ignore"):
        return np.atleast_2d(np.nan_to_num(np.corrcoef(ranks)))


def _correlate_ranks(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Return Spearman's correlation of two columns. It is 0 if one is constant."""
    return float(_correlate_columns([a, b])[0, 1])

"""The file that Kaggle takes: written only when it passes every check, and checked on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from claris_kaggle import __version__, ensemble, members, tables
from claris_kaggle.blending import require_method
from claris_kaggle.console import say
from claris_kaggle.errors import DataError, DiskError, RunError, TableError, UsageError, name_few
from claris_kaggle.files import read_json, replacing, sha256_file, write_json
from claris_kaggle.folds import read_folds, write_folds
from claris_kaggle.paths import DataDir, RunDir, require_place
from claris_kaggle.predictions import TestPredictions, run_metrics, run_tables, write_run_oof, write_test

COLUMNS = ("id", "label")
MEND = "Write it again: claris ensemble RUN_DIR --data DIR --out submission.csv"


@dataclass(frozen=True)
class Submission:
    """A submission's rows as they stand in the file.

    Attributes:
        name: of the file, for messages.
        ids: [N], each once.
        values: float64 [N] in 0..1: Kaggle tells apart what a float32 would not.
    """

    name: str
    ids: list[str]
    values: NDArray[np.float64]

    def by_id(self) -> NDArray[np.float64]:
        """The values in the order of the sorted ids."""
        return self.values[tables.sort_order(self.ids)]

    def is_constant(self) -> bool:
        """Whether several rows all have one value."""
        return len(self.values) > 1 and bool(self.values.min() == self.values.max())


def read_submission(path: Path, called: Path | None = None) -> Submission:
    """The rows of the file `path`; `called` is what messages call it, where it is a draft of another.

    Raises:
        TableError: it is no submission.
        DiskError: it is not there.
    """
    name = called or path
    frame = tables.read_table(path, COLUMNS, mend=MEND, ended=True)
    ids = frame["id"].tolist()
    tables.require_ids(ids, name, MEND)
    tables.require_unique(ids, name, MEND)
    return Submission(str(name), ids, tables.parse_probabilities(frame["label"].tolist(), name, MEND))


def check_submission(path: Path, sample_ids: Sequence[str], called: Path | None = None) -> dict[str, Any]:
    """What the submission holds, once it is known to be one that Kaggle will score as meant.

    Args:
        path: the CSV.
        sample_ids: the ids of the sample submission, in its order.
        called: what messages call the file, where it is a draft of another.
    Returns:
        rows, min, max and mean of the values, how many differ, the file's SHA-256, and whether the ids stand in the
        sample's order (Kaggle joins by id; another order is allowed).
    Raises:
        TableError: cut off, a wrong header, extra columns, missing, surplus or repeated ids, values that
            are no probabilities, or all of them the same.
        DiskError: it is not there.
    """
    one = read_submission(path, called)
    tables.require_equal_ids(one.ids, sample_ids, called or path, "sample_submission.csv", MEND)
    if one.is_constant():
        found = f"{one.name}: every value is {one.values[0]:g}"
        raise TableError(found, "a constant column scores 0.5", "Look at the predictions, or whether it is the sample")
    return {
        "rows": len(one.ids),
        "min": float(one.values.min()),
        "max": float(one.values.max()),
        "mean": float(one.values.mean()),
        "distinct": len(np.unique(one.values)),
        "sample_order": one.ids == list(sample_ids),
        "sha256": sha256_file(path),
    }


def write_submission(
    path: Path, test: TestPredictions, sample_ids: Sequence[str], about: dict[str, Any]
) -> dict[str, Any]:
    """Put the submission in place in the sample's order, if it passes `check_submission`, and a JSON beside it.

    Args:
        path: the CSV to write.
        test: predictions of exactly these ids.
        sample_ids: the ids of the sample submission, in its order.
        about: what the JSON should say of the origin.
    Returns:
        The content of the JSON.
    Raises:
        UsageError: the name does not end in .csv, or what is there is no submission of ours.
        TableError: the predictions do not make a submission; the files that were there stay.
    """
    require_place(path, COLUMNS)
    tables.require_equal_ids(test.ids, sample_ids, path, "sample_submission.csv", "Predict again on this data folder")
    value_of = dict(zip(test.ids, test.probabilities, strict=True))
    values = np.array([value_of[name] for name in sample_ids], dtype=np.float32)
    # Both are whole before either takes its name.
    with replacing(path.with_suffix(".json")) as beside, replacing(path) as draft:
        tables.write_table(draft, dict(zip(COLUMNS, (list(sample_ids), values), strict=True)))
        facts = check_submission(draft, sample_ids, called=path)
        record = {**facts, **about, "versions": {"claris_kaggle": __version__}}
        write_json(beside, record)
    return record


def ensemble_runs(
    run_dirs: Sequence[RunDir],
    data: DataDir,
    out: Path,
    *,
    method: str = "mean",
    only_sound: bool = False,
    calibrate: bool = False,
    keep: RunDir | None = None,
) -> dict[str, Any]:
    """Combine the runs and write the checked submission.

    Args:
        run_dirs: one run or several over the same folds, each predicted.
        data: the competition's folder, whose sample submission gives ids and order.
        out: the CSV to write.
        method: one of `blending.METHODS`, or `auto`.
        only_sound: leave out runs that `members.examine_runs` has something against.
        calibrate: scale the result by the temperature of the OOF predictions; ranks, and so the AUC of a fold, stay.
        keep: folder for the combined `oof.csv`, `test.csv` and `metrics.json`: a run like any other.
    Returns:
        The submission's path, `runs` with the OOF figures of each, `oof` with the figures of all
        together, scored with weights fitted on other folds, and the ensemble's evidence.
    Raises:
        ClarisError: the runs do not fit together or to the data, are not finished, or cancel out; or `keep` is not
            free.
    """
    require_method(method)
    require_place(out, COLUMNS)
    if keep:
        require_free(keep, run_dirs)
    sample_ids = tables.read_sample(data.sample)
    runs = members.load_runs(run_dirs)
    first = runs[0]
    tables.require_equal_ids(
        first.test.ids, sample_ids, run_dirs[0].test, data.sample.name, "Predict on this data folder"
    )
    tell_unknown(runs, run_dirs, data)
    together = ensemble.combine(runs, method, only_sound=only_sound)
    if calibrate:
        together = ensemble.calibrated(together)
    figures = run_tables(together.oof, together.slides)
    evidence = {"ensemble": together.evidence}
    origin = {run.name: describe_run(run_dir) for run, run_dir in zip(runs, run_dirs, strict=True)}
    require_variety(together)
    about = {"method": together.evidence["method"], "oof": figures["overall"], "runs": origin, **evidence}
    write_submission(out, together.test, sample_ids, about)
    if keep:
        fold_file = next((run_dir.folds for run_dir in run_dirs if run_dir.folds.exists()), None)
        keep_run(keep, together, {**evidence, **figures}, fold_file)
    of_runs = {run.name: run_metrics(run.oof, run.slides)["overall"] for run in runs}
    return {"submission": str(out), "method": about["method"], "runs": of_runs, "oof": figures["overall"], **evidence}


def require_variety(together: ensemble.Ensemble) -> None:
    """Refuse a constant that comes of suspicious runs, such as a run and its mirror, naming these.

    Raises:
        RunError: one of them with what speaks against it.
    """
    values, remarks = together.test.probabilities, together.evidence["remarks"]
    kept = [f"{name}: {text}" for name, text in remarks.items() if name not in together.evidence["left_out"]]
    if len(together.evidence["weights"]) > 1 and kept and np.ptp(values) == 0:
        found = f"together the runs say {values[0]:g} of every patch; {kept[0]}"
        raise RunError(found, "", "Leave it out, or take --only-sound")


def tell_unknown(runs: Sequence[members.Run], run_dirs: Sequence[RunDir], data: DataDir) -> None:
    """Hold the runs against the training labels where they are there, and say what is taken on trust.

    Raises:
        RunError: a run's OOF patches are not training patches, or have other labels.
    """
    strangers = [run.name for run, run_dir in zip(runs, run_dirs, strict=True) if not run_dir.folds.exists()]
    if strangers:
        own = "its own" if len(strangers) == 1 else "their own"
        say(f"{name_few(strangers)}: no fold file of {own}; that no model saw its OOF patches is taken on trust")
    if runs[0].slides is None:
        say("the slides are not known: intervals take patches for independent, and are too narrow where they are not")
    if not data.labels.exists():
        return
    ids, labels = tables.read_labels(data.labels)
    members.require_labels(runs[0], ids, labels)
    if len(runs[0].oof.ids) < len(ids):
        say(f"OOF predictions of {len(runs[0].oof.ids):,} of {len(ids):,} training patches; figures are of those alone")


def require_free(run_dir: RunDir, run_dirs: Sequence[RunDir]) -> None:
    """Refuse to keep an ensemble where it would take the place of anything but an older one.

    Raises:
        UsageError: the folder is a trained run, one of those to combine, or holds files of another origin.
    """
    files = (run_dir.folds, run_dir.folds.with_suffix(".json"), run_dir.oof, run_dir.test, run_dir.metrics)
    taken = [path.name for path in files if path.exists()]
    if run_dir.root.resolve() in [one.root.resolve() for one in run_dirs]:
        what = "one of the runs to combine"
    elif run_dir.config.exists():
        what = "a trained run"
    elif taken and not is_ensemble(run_dir):
        what = f"it holds {name_few(taken)} of another origin"
    else:
        return
    raise UsageError(f"{run_dir.root}: {what}", "a folder of its own is needed", "Name another --run")


def is_ensemble(run_dir: RunDir) -> bool:
    """Whether the folder says that it is an ensemble which was kept."""
    try:
        return isinstance(read_json(run_dir.metrics).get("ensemble"), dict)
    except (DataError, DiskError):
        return False


def keep_run(
    run_dir: RunDir, together: ensemble.Ensemble, figures: dict[str, Any], fold_file: Path | None = None
) -> None:
    """Write the ensemble as a run of its own, which can be reported on and combined in its turn.

    Args:
        figures: for its `metrics.json`.
        fold_file: of the runs, where one has it: it tells the slides.
    """
    if fold_file:
        write_folds(run_dir.folds, read_folds(fold_file), {"copied_from": fold_file.name}, overwrite=True)
    else:
        for path in (run_dir.folds, run_dir.folds.with_suffix(".json")):
            path.unlink(missing_ok=True)
    write_run_oof(run_dir.oof, together.oof)
    write_test(run_dir.test, together.test.ids, together.test.probabilities)
    write_json(run_dir.metrics, figures)


def describe_run(run_dir: RunDir) -> dict[str, Any]:
    """Config and digests of what a run gave to a submission; what is not known is left out."""
    about: dict[str, Any] = {"oof_sha256": sha256_file(run_dir.oof), "test_sha256": sha256_file(run_dir.test)}
    if run_dir.config.exists():
        about["config"] = read_json(run_dir.config)
    sealed = run_dir.sealed_folds()
    weights = {f"fold{fold}": read_json(run_dir.fold(fold).seal).get("weights_sha256") for fold in sealed}
    return {**about, "weights_sha256": weights}

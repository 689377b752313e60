"""The file that Kaggle takes: written only when it passes every check, and checked on its own."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from claris_kaggle import __version__, ensemble, tables
from claris_kaggle.console import say
from claris_kaggle.errors import TableError, UsageError
from claris_kaggle.files import explain_disk_errors, read_json, sha256_file, write_bytes, write_json
from claris_kaggle.paths import DataDir, RunDir
from claris_kaggle.predictions import TestPredictions, run_metrics, write_run_oof, write_test

COLUMNS = ("id", "label")
MEND = "Write it again: claris ensemble RUN_DIR --data DIR --out submission.csv"


def check_submission(path: Path, sample_ids: Sequence[str]) -> dict[str, Any]:
    """What the submission holds, once it is known to be one that Kaggle will score as meant.

    Args:
        path: the CSV.
        sample_ids: the ids of the sample submission, in its order.
    Returns:
        rows, min, max and mean of the values, the file's SHA-256, and whether the ids stand in the
        sample's order (Kaggle joins by id; another order is allowed).
    Raises:
        TableError: cut off, a wrong header, extra columns, missing, surplus or repeated ids, values that
            are no probabilities, or all of them the same.
        DiskError: it is not there.
    """
    frame = tables.read_table(path, COLUMNS, mend=MEND, ended=True)
    ids = frame["id"].tolist()
    tables.require_ids(ids, path, MEND)
    tables.require_unique(ids, path, MEND)
    tables.require_equal_ids(ids, sample_ids, path, "sample_submission.csv", MEND)
    values = tables.parse_probabilities(frame["label"].tolist(), path, MEND)
    if len(values) > 1 and values.min() == values.max():
        found = f"{path}: every value is {values[0]:g}"
        raise TableError(found, "a constant column scores 0.5", "Look at the predictions, or whether it is the sample")
    return {
        "rows": len(ids),
        "min": float(values.min()),
        "max": float(values.max()),
        "mean": float(values.mean(dtype=np.float64)),
        "sample_order": ids == list(sample_ids),
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
        UsageError: the name does not end in .csv.
        TableError: the predictions do not make a submission; the file that was there stays.
    """
    if path.suffix != ".csv":
        raise UsageError(f"{path}: not a name of a CSV file", "a name that ends in .csv is needed")
    tables.require_equal_ids(test.ids, sample_ids, path, "sample_submission.csv", "Predict again on this data folder")
    value_of = dict(zip(test.ids, test.probabilities, strict=True))
    values = np.array([value_of[name] for name in sample_ids], dtype=np.float32)
    with explain_disk_errors(path), tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / path.name
        tables.write_table(draft, dict(zip(COLUMNS, (list(sample_ids), values), strict=True)))
        facts = check_submission(draft, sample_ids)
        content = draft.read_bytes()
    record = {**facts, **about, "versions": {"claris_kaggle": __version__}}
    write_bytes(path, content)
    write_json(path.with_suffix(".json"), record)
    return record


def submit_runs(
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
        only_sound: leave out runs that `ensemble.examine` has something against.
        calibrate: scale the result by the temperature of the OOF predictions; ranks, and so the AUC of a fold, stay.
        keep: folder for the combined `oof.csv`, `test.csv` and `metrics.json`: a run like any other.
    Returns:
        The submission's path, `runs` with the OOF figures of each, `oof` with the figures of all
        together, scored with weights fitted on other folds, and the ensemble's evidence.
    Raises:
        ClarisError: the runs do not fit together or to the data, or are not finished.
    """
    sample_ids = tables.read_sample(data.sample)
    names = label_runs(run_dirs)
    runs = [replace(ensemble.load_run(one), name=name) for one, name in zip(run_dirs, names, strict=True)]
    for run, run_dir in zip(runs, run_dirs, strict=True):
        tables.require_equal_ids(
            run.test.ids, sample_ids, run_dir.test, data.sample.name, "Predict on this data folder"
        )
    for run, run_dir in zip(runs, run_dirs, strict=True):
        if not run_dir.folds.exists():
            say(f"{run.name}: no fold file and no config of its own; that no model saw its OOF patches is its word")
    together = ensemble.combine(runs, method, only_sound=only_sound)
    if calibrate:
        together = ensemble.calibrated(together)
    figures = run_metrics(together.oof, together.slides)
    evidence = {"ensemble": together.evidence}
    origin = {name: describe_run(run_dir) for name, run_dir in zip(names, run_dirs, strict=True)}
    about = {"method": together.evidence["method"], "oof": figures["overall"], "runs": origin, **evidence}
    write_submission(out, together.test, sample_ids, about)
    if keep:
        keep_run(keep, together, {**evidence, **figures})
    of_runs = {run.name: run_metrics(run.oof, run.slides)["overall"] for run in runs}
    return {"submission": str(out), "method": about["method"], "runs": of_runs, "oof": figures["overall"], **evidence}


def keep_run(run_dir: RunDir, together: ensemble.Ensemble, figures: dict[str, Any]) -> None:
    """Write the ensemble as a run of its own, which can be reported on and combined in its turn.

    Raises:
        UsageError: the folder is a trained run.
    """
    if run_dir.config.exists():
        raise UsageError(f"{run_dir.root}: a trained run", "a folder of its own is needed", "Name another --run")
    write_run_oof(run_dir.oof, together.oof)
    write_test(run_dir.test, together.test.ids, together.test.probabilities)
    write_json(run_dir.metrics, figures)


def label_runs(run_dirs: Sequence[RunDir]) -> list[str]:
    """A distinct name for each run: its folder's, or the whole path where two have the same."""
    names = [run_dir.root.name for run_dir in run_dirs]
    return [name if names.count(name) == 1 else str(one.root) for name, one in zip(names, run_dirs, strict=True)]


def describe_run(run_dir: RunDir) -> dict[str, Any]:
    """Config and digests of what a run gave to a submission; what is not known is left out."""
    about: dict[str, Any] = {"oof_sha256": sha256_file(run_dir.oof), "test_sha256": sha256_file(run_dir.test)}
    if run_dir.config.exists():
        about["config"] = read_json(run_dir.config)
    weights = {}
    for seal in sorted(run_dir.root.glob("fold[0-9]*/model.json")):
        weights[seal.parent.name] = read_json(seal).get("weights_sha256")
    return {**about, "weights_sha256": weights}

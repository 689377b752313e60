"""Test the list of runs: it contains every run of a folder in any state, the best first."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from claris_kaggle.core.errors import UsageError
from claris_kaggle.core.paths import RunDir
from claris_kaggle.data.tables import write_table
from claris_kaggle.ensembling.ledger import LedgerEntry, record_submission
from claris_kaggle.ensembling.run_list import list_runs
from tests.support.handmade import FOLD, IDS, SLIDES, make_run, put, put_data, put_with_slides, select_rows

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(finished: RunDir, tmp_path: Path) -> Path:
    runs = tmp_path / "runs"
    for name in ("done", "unfinished", "damaged", "odd"):
        shutil.copytree(finished.root, runs / name)
    unfinished = RunDir(runs / "unfinished")
    unfinished.metrics.unlink()
    unfinished.fold(2).weights_manifest.unlink()
    RunDir(runs / "damaged").config.write_text("{")
    RunDir(runs / "odd").metrics.write_text('{"folds": 3}')
    put(runs, make_run("other", 1, 0.2))
    (runs / "notes").mkdir()
    return runs


def test_runs_are_sorted_and_damaged_ones_are_listed(call: Call, folder: Path, finished: RunDir) -> None:
    overall = json.loads(finished.metrics.read_text())["overall"]
    entries = [LedgerEntry(ref="1", runs="done", public="0.95"), LedgerEntry(ref="2", runs="done other", public="0.97")]
    found = {run.name: run for run in list_runs(folder, entries)}
    assert list(found)[0] == "other" and list(found)[2:] == ["damaged", "odd", "unfinished"]
    states = {name: run.state for name, run in found.items()}
    assert states == {
        "other": "predictions only", "done": "predicted", "damaged": "damaged", "odd": "damaged",
        "unfinished": "unfinished",
    }  # fmt: skip
    done = found["done"]
    assert (done.oof_auc, done.oof_interval) == (overall["auc"], tuple(overall["auc_interval"]))
    assert (done.model, done.folds_finished, done.folds_total, done.public, done.private) == ("tiny", 3, 3, 0.95, None)
    assert done.hours is not None and 0 < done.hours < 1
    assert (found["unfinished"].folds_finished, found["unfinished"].folds_total) == (2, 3)
    for entry in entries:
        record_submission(folder / "ledger.csv", entry)
    code, shown, said = call("runs", folder, "--ledger", folder / "ledger.csv")
    header, *rows = shown.splitlines()
    assert code == 0 and header.split()[0] == "AUC" and len(rows) == 5
    assert [row.split()[-1] for row in rows] == list(found) and {row[0] for row in rows} == {" "}
    assert "the runs with all folds are scored on different patches" in said
    assert "damaged: " in said and "odd: " in said and "Traceback" not in said
    code, shown, _ = call("runs", folder, "--ledger", folder / "ledger.csv", "--json")
    content = json.loads(shown)
    assert code == 0 and content["best"] is None and [one["name"] for one in content["runs"]] == list(found)


def test_holdouts_and_single_folds_follow_the_runs_with_all_folds_and_are_never_the_best(
    call: Call, tmp_path: Path
) -> None:
    for name, seed, noise in (("fair", 1, 3.0), ("good", 2, 1.5)):
        put(tmp_path, make_run(name, seed, noise))
    sharp = make_run("fold", 3, 0.1)
    put(tmp_path, select_rows(sharp, np.flatnonzero(FOLD == 3)))
    put(tmp_path, replace(sharp, name="held", oof=replace(sharp.oof, fold=np.zeros_like(FOLD), has_folds=False)))
    code, shown, _ = call("runs", tmp_path, "--json")
    content = json.loads(shown)
    assert code == 0 and content["best"] == "good"
    scored = {run["name"]: run["scored_on"] for run in content["runs"]}
    assert list(scored)[:2] == ["good", "fair"]
    assert scored == {"good": "all folds", "fair": "all folds", "fold": "fold 3", "held": "holdout"}
    header, *rows = call("runs", tmp_path)[1].splitlines()
    assert "OOF" not in header and [row[0] for row in rows] == ["*", " ", " ", " "]
    assert sum(" holdout " in row for row in rows) == sum(" fold 3 " in row for row in rows) == 1
    put(tmp_path, replace(select_rows(sharp, np.arange(300)), name="half"))
    code, shown, said = call("runs", tmp_path)
    assert code == 0 and "*" not in shown and "scored on different patches" in said
    assert [run.name for run in list_runs(tmp_path)][:3] == ["half", "good", "fair"]


def test_an_empty_or_missing_folder_is_one_line(call: Call, tmp_path: Path) -> None:
    code, shown, said = call("runs", tmp_path, "--ledger", tmp_path / "no.csv")
    assert (code, shown) == (0, "") and "no runs in this folder" in said
    code, _, said = call("runs", tmp_path / "none")
    assert code == 2 and said.count("\n") == 1 and "no such folder" in said
    with pytest.raises(UsageError):
        list_runs(tmp_path / "none")


def test_intervals_are_by_slide_where_the_slides_are_known_as_those_of_ensemble(call: Call, tmp_path: Path) -> None:
    data, folder, out = put_data(tmp_path / "data"), tmp_path / "runs", tmp_path / "s.csv"
    put(folder, make_run("tool", 1))
    put_with_slides(folder, make_run("known", 2))
    assert {run.name: run.oof_interval_by for run in list_runs(folder)} == {"tool": "patch", "known": "slide"}
    write_table(data.slides, {"id": IDS, "wsi": SLIDES})
    code, shown, _ = call("runs", folder, "--data", data.root, "--json")
    listed = {run["name"]: run for run in json.loads(shown)["runs"]}
    assert code == 0 and {run["oof_interval_by"] for run in listed.values()} == {"slide"}
    for name, run in listed.items():
        metrics = json.loads(call("ensemble", folder / name, "--data", data.root, "--out", out, "--json")[1])["oof"]
        assert (run["oof_interval"], run["oof_interval_by"]) == (metrics["auc_interval"], metrics["auc_interval_by"])
    assert all(" by slide " in row for row in call("runs", folder, "--data", data.root)[1].splitlines()[1:])
    assert " by patch " in call("runs", folder)[1]
    write_table(data.slides, {"id": ["other"], "wsi": ["s"]})
    tool = next(run for run in list_runs(folder, (), data.slides) if run.name == "tool")
    assert (tool.state, tool.oof_interval_by) == ("predictions only", "patch") and "slides.csv" in tool.problem


def test_intervals_of_earlier_versions_are_read(finished: RunDir, tmp_path: Path) -> None:
    run = RunDir(shutil.copytree(finished.root, tmp_path / "runs" / "old"))
    content = json.loads(run.metrics.read_text())
    del content["overall"]["auc_interval_by"]
    for former, now in (("slides", "slide"), ("DeLong", "patch")):
        content["overall"]["auc_way"] = former
        run.metrics.write_text(json.dumps(content))
        assert list_runs(tmp_path / "runs")[0].oof_interval_by == now

"""Test folders of runs of any origin: joined, reported as suspicious, refused by name, and never overwritten."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from claris_kaggle.core.errors import ClarisError, RunError, TableError, UsageError
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data.fold_file import Folds, write_folds
from claris_kaggle.data.tables import write_table
from claris_kaggle.ensembling.ensemble_runs import ensemble_runs
from claris_kaggle.ensembling.runs import Run, _examine_runs, _load_runs, _require_labels, label_runs, load_run
from claris_kaggle.ensembling.submission_file import check_submission
from claris_kaggle.evaluation.predictions import Oof, read_oof
from claris_kaggle.evaluation.run_metrics import explain_pooling, run_metrics
from tests.conftest import contents, shuffle_rows
from tests.support.handmade import (
    FOLD,
    IDS,
    LABELS,
    SLIDES,
    TEST_IDS,
    TESTS,
    TOTAL,
    make_run,
    put,
    put_data,
    put_with_slides,
    select_rows,
    watch_work,
)

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    return put_data(tmp_path / "data")


@pytest.fixture
def two(tmp_path: Path) -> list[RunDir]:
    return [put(tmp_path / "runs", make_run(name, seed)) for name, seed in (("first", 1), ("second", 2))]


def test_two_files_are_a_run_and_what_is_unknown_is_said(call: Call, data: DataDir, two: list[RunDir]) -> None:
    out, kept = data.root / "s.csv", data.root / "both"
    arguments = ["ensemble", *(one.root for one in two), "--data", data.root, "--out", out, "--method", "auto"]
    code, shown, said = call(*arguments, "--save-run", kept)
    assert code == 0 and shown.splitlines()[-1] == str(out)
    assert "first, second: no fold file of their own" in said and "no slide ids" in said
    for words in ("rank correlation", "nested OOF AUC", "method: ", " compared with first, p ", "ensemble: OOF AUC"):
        assert words in shown, words
    check_submission(out, TEST_IDS[::-1])
    stored = json.loads((kept / "metrics.json").read_text())
    assert set(stored) == {"ensemble", "overall", "folds", "calibration", "slides"}
    assert stored["ensemble"] == json.loads(out.with_suffix(".json").read_text())["ensemble"]
    assert call("report", two[0].root, kept, "--out", data.root / "report.html")[0] == 0
    page = html.unescape((data.root / "report.html").read_text("utf-8"))
    remark = run_metrics(load_run(two[0]).oof).overall.pooling_remark
    assert remark[1:] in page and "The ensemble’s AUC minus that of the best run, first: " in page
    assert call(*arguments, "--save-run", kept)[0] == 0, "an ensemble takes the place of an ensemble"


def test_json_is_all_of_stdout(call: Call, data: DataDir, two: list[RunDir]) -> None:
    wide = ["ensemble", *(one.root for one in two), "--data", data.root, "--out", data.root / "s.csv", "--json"]
    for method in ("mean", "greedy", "auto"):
        code, shown, _ = call(*wide, "--method", method, "--calibrate")
        result = json.loads(shown, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert (
            code == 0
            and result["ensemble"]["requested_method"] == method
            and set(result["runs"]) == {"first", "second"}
        )


def test_slides_that_one_run_knows_hold_for_all_and_for_the_ensemble(data: DataDir, two: list[RunDir]) -> None:
    folds = Folds(IDS, LABELS, SLIDES, FOLD)
    assert folds.slides == SLIDES
    write_folds(two[1].folds, folds, {})
    kept = RunDir(data.root / "both")
    found = ensemble_runs(two, data, data.root / "s.csv", keep=kept)
    assert {one.auc_interval_by for one in [found.oof, *found.runs.values()]} == {"slide"}
    again = load_run(kept)
    assert again.slides == SLIDES
    assert run_metrics(again.oof, again.slides).overall == found.oof
    stored = json.loads(kept.metrics.read_text())
    assert len(stored["slides"]) == 20 and len(stored["folds"]) == 5 and len(stored["calibration"]["predicted"]) == 15


@pytest.mark.parametrize(("method", "blends"), [("mean", 1), ("stack", 2), ("auto", 7)])
def test_each_run_and_each_blend_is_resampled_once_and_each_table_read_once(
    method: str, blends: int, call: Call, data: DataDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [put_with_slides(tmp_path / "runs", make_run(f"run{seed}", seed, 1 + 0.2 * seed)) for seed in range(3)]
    resampled, read = watch_work(monkeypatch)
    places = [*(one.root for one in runs), "--data", data.root, "--out", data.root / "s.csv"]
    assert call("ensemble", *places, "--method", method, "--save-run", data.root / "kept")[0] == 0
    assert len(resampled) == len(set(resampled)) == len(runs) + blends
    assert (
        len(read) == len(set(read)) == 2 * len(runs) + 4
    )  # with the sample, the labels, the submission and one fold file


def test_patches_of_a_single_slide_are_scored_with_the_remark_that_intervals_are_too_narrow(
    call: Call, data: DataDir, two: list[RunDir]
) -> None:
    write_table(data.slides, {"id": IDS, "wsi": ["one"] * len(IDS)})
    places = [*(one.root for one in two), "--data", data.root]
    code, shown, said = call("ensemble", *places, "--out", data.root / "s.csv", "--method", "auto")
    assert code == 0 and "ensemble: OOF AUC" in shown
    assert "all patches are of one slide: intervals assume independent patches and are too narrow" in said
    assert call("report", *(one.root for one in two), "--out", data.root / "report.html")[0] == 0
    assert call("runs", two[0].root.parent, "--data", data.root)[0] == 0


def test_the_slide_map_of_the_data_is_read_once_for_all_runs(
    call: Call, data: DataDir, two: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table(data.slides, {"id": IDS, "wsi": SLIDES})
    _, read = watch_work(monkeypatch)
    code, _, said = call("ensemble", *(one.root for one in two), "--data", data.root, "--out", data.root / "s.csv")
    assert code == 0 and "no slide ids" not in said, said
    assert read.count(data.slides) == 1


@pytest.mark.parametrize(
    ("noises", "words"),
    [
        ((0.6, 9.0, 9.0), "p < 0.0001: run0 is better"),
        ((1.0, 1.0, 1.0), ": the ensemble is better"),
        ((1.0, 2.3), ": run0 scored higher, but the difference is not significant"),
    ],
)
def test_the_ensemble_is_held_against_the_best_run_in_words(
    noises: tuple[float, ...], words: str, call: Call, data: DataDir, tmp_path: Path
) -> None:
    runs = [put(tmp_path / "runs", make_run(f"run{seed}", seed, noise)) for seed, noise in enumerate(noises)]
    out = data.root / "s.csv"
    code, shown, _ = call("ensemble", *(one.root for one in runs), "--data", data.root, "--out", out)
    verdict = next(line for line in shown.splitlines() if line.startswith("ensemble compared with the best run"))
    assert code == 0 and verdict.endswith(words), verdict
    alone = f"for run0 alone, in place of {out}: claris ensemble {runs[0].root} --data {data.root} --out {out}"
    assert (alone in shown) == ("run0" in words)
    assert sum(line.startswith("  run") for line in shown.splitlines()) == len(runs), "what each adds"


def test_a_pooled_auc_below_that_of_the_folds_is_explained(call: Call, data: DataDir, tmp_path: Path) -> None:
    run = make_run("shifted", 3)
    logits = np.log(run.oof.probabilities / (1 - run.oof.probabilities)) + 3 * FOLD - 6
    place = put(tmp_path, change(run, probabilities=(1 / (1 + np.exp(-logits))).astype(np.float32)))
    code, _, said = call("ensemble", place.root, "--data", data.root, "--out", data.root / "s.csv")
    assert code == 0 and "is below the mean AUC of the folds" in said
    assert explain_pooling(0.9, 0.9005) == explain_pooling(0.9, 0.8) == explain_pooling(0.9, None) == ""


def test_the_order_of_rows_in_files_changes_no_byte(data: DataDir, two: list[RunDir]) -> None:
    results = []
    for number in range(2):
        kept = RunDir(data.root / f"kept{number}")
        ensemble_runs(two, data, data.root / "s.csv", method="auto", keep=kept)
        results.append({**contents(kept.root), "s": (data.root / "s.csv").read_bytes()})
        for run_dir in two:
            for path in (run_dir.oof, run_dir.test):
                shuffle_rows(path, path)
    assert results[0] == results[1]


@pytest.mark.parametrize("place", ["first", "second", "other", "trained"])
def test_predictions_of_another_origin_are_never_overwritten(place: str, data: DataDir, two: list[RunDir]) -> None:
    folder = two[0].root.parent
    put(folder, make_run("other", 9))
    (folder / "trained").mkdir()
    (folder / "trained" / "config.json").write_text("{}")
    before = contents(folder)
    with pytest.raises(UsageError, match=r"(one of the runs|another source|a trained run).*Give another --save-run"):
        ensemble_runs(two, data, data.root / "s.csv", keep=RunDir(folder / place))
    assert contents(folder) == before and not (data.root / "s.csv").exists()


@pytest.mark.parametrize("name", ["folds.csv", "folds.json", "oof.csv", "test.csv", "metrics.json"])
@pytest.mark.parametrize("text", ["notes", '{"ensemble": 0.9}'])
def test_a_file_of_ones_own_is_never_taken_for_an_ensembles(
    name: str, text: str, data: DataDir, two: list[RunDir]
) -> None:
    place = RunDir(data.root / "mine")
    place.root.mkdir()
    (place.root / name).write_text(text)
    with pytest.raises(UsageError, match=f"it has {name} from another source.*Give another --save-run"):
        ensemble_runs(two, data, data.root / "s.csv", keep=place)
    assert contents(place.root) == {name: text.encode()} and not (data.root / "s.csv").exists()


def test_a_run_that_is_given_twice_is_refused_however_it_is_spelt(two: list[RunDir], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(two[0].root)
    for again in (two[0].root, two[0].root / ".." / "first", tmp_path / "link"):
        with pytest.raises(UsageError, match="given more than once"):
            label_runs([two[0], RunDir(again)])


def test_runs_of_one_name_are_told_apart_by_their_folders(data: DataDir, two: list[RunDir], tmp_path: Path) -> None:
    namesake = put(tmp_path / "elsewhere", make_run("first", 3))
    names = [run.name for run in _load_runs([*two, namesake])]
    assert names == [str(two[0].root), "second", str(namesake.root)]
    assert set(ensemble_runs([*two, namesake], data, data.root / "s.csv").runs) == set(names)


def change(run: Run, **parts: object) -> Run:
    """Return a copy of the run with other OOF columns."""
    return replace(run, oof=replace(run.oof, **parts))


MISFITS = {
    "other folds": (
        lambda run: change(run, fold=np.arange(TOTAL) // 120),
        "first and odd cannot be combined.*different folds",
    ),
    "other labels": (
        lambda run: change(run, labels=1 - run.oof.labels),
        "first and odd cannot be combined.*different labels",
    ),
    "part of the folds": (lambda run: select_rows(run, np.flatnonzero(FOLD < 2)), "360 training ids in only one"),
    "ids in capitals": (lambda run: change(run, ids=[f"{n:040X}" for n in range(TOTAL)]), "training ids in only one"),
    "other test ids": (
        lambda run: replace(run, test=replace(run.test, ids=["f" * 40, *TEST_IDS[1:]])),
        "2 test ids in only one of them",
    ),
    "one malignant patch": (
        lambda run: select_rows(run, np.r_[np.flatnonzero(LABELS)[:1], np.flatnonzero(LABELS == 0)[:9]]),
        r"odd/oof.csv: 1 malignant and 9 benign patches; a score needs at least two of each",
    ),
    "a NaN": (lambda run: change(run, probabilities=np.where(FOLD == 1, np.nan, 0.5)), r"odd/oof.csv.*120 prob.*NaN"),
    "logits": (lambda run: change(run, probabilities=run.oof.probabilities * 9 - 4), r"odd/oof.csv.*outside 0 to 1"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_run_that_does_not_fit_is_refused_by_name(name: str, data: DataDir, two: list[RunDir]) -> None:
    spoil, words = MISFITS[name]
    odd = put(two[0].root.parent, spoil(make_run("odd", 3)))
    with pytest.raises(ClarisError, match=words) as caught:
        ensemble_runs([two[0], odd], data, data.root / "s.csv")
    assert not isinstance(caught.value, UsageError) and not (data.root / "s.csv").exists()


def test_labels_are_held_against_the_training_labels(data: DataDir, tmp_path: Path) -> None:
    wrong = LABELS.copy()
    wrong[7] = 1 - wrong[7]
    with pytest.raises(RunError, match=rf"odd: 1 label different from train_labels.csv \({IDS[7]}\)"):
        ensemble_runs([put(tmp_path / "a", change(make_run("odd", 3), labels=wrong))], data, data.root / "s.csv")
    with pytest.raises(RunError, match=r"odd: 1 OOF id not in train_labels.csv"):
        _require_labels(make_run("odd", 3), IDS[1:], LABELS[1:])
    run, small, large = make_run("odd", 3), "abcdef" * 6 + "0123", "ABCDEF" * 6 + "0123"
    capitals = replace(run, oof=replace(run.oof, ids=[*IDS[1:], large]))
    with pytest.raises(
        RunError, match=r"\(ABC.*\); .*differ only in capital letters: write them as in train_labels.csv$"
    ):
        _require_labels(capitals, [*IDS, small], np.append(LABELS, LABELS[:1]))
    data.labels.unlink()
    ensemble_runs([put(tmp_path / "b", change(make_run("odd", 3), labels=wrong))], data, data.root / "s.csv")


def test_labels_and_folds_written_as_decimals_are_read(two: list[RunDir]) -> None:
    before = read_oof(two[0].oof)
    rows = [line.split(",") for line in two[0].oof.read_text().splitlines()]
    decimals = [",".join([row[0], f"{row[1]}.0", f"{row[2]}.0", row[3]]) for row in rows[1:]]
    two[0].oof.write_text("\n".join([",".join(rows[0]), *decimals]) + "\n")
    after = read_oof(two[0].oof)
    assert (after.labels == before.labels).all() and (after.fold == before.fold).all()
    two[0].oof.write_text(two[0].oof.read_text().replace(".0,", ".5,", 2))
    with pytest.raises(TableError, match=r"label other than 0 and 1|invalid fold number"):
        read_oof(two[0].oof)


def test_a_run_over_part_of_the_folds_is_scored_on_them_and_that_is_said(
    call: Call, data: DataDir, tmp_path: Path
) -> None:
    part = put(tmp_path / "runs", select_rows(make_run("part", 3), np.flatnonzero(FOLD == 2)))
    code, _, said = call("ensemble", part.root, "--data", data.root, "--out", data.root / "s.csv", "--method", "auto")
    assert code == 0 and "predictions of 120 of 600 training patches" in said


def test_a_fold_of_one_class_has_no_auc_and_everything_else(call: Call, data: DataDir, tmp_path: Path) -> None:
    fold = np.where(LABELS == 1, np.minimum(FOLD, 3), FOLD)
    run = put(tmp_path / "runs", change(make_run("odd", 3), fold=fold))
    other = put(tmp_path / "runs", change(make_run("even", 4), fold=fold))
    arguments = [run.root, other.root, "--data", data.root, "--out", data.root / "s.csv", "--method", "auto"]
    assert call("ensemble", *arguments)[0] == 0
    figures = run_metrics(read_oof(run.oof))
    assert figures.folds[4].auc is None and 0 < figures.folds[4].accuracy < 1
    assert figures.overall.fold_auc_mean == np.mean([row.auc for row in figures.folds[:4]])
    assert call("report", run.root, "--out", data.root / "report.html")[0] == 0


def test_only_what_something_speaks_against_is_named() -> None:
    sound = [make_run(f"sound{seed}", seed) for seed in range(4)]
    assert _examine_runs(sound) == {} and _examine_runs(sound[:1]) == {}
    odd = make_run("odd", 8)
    upside_down = replace(odd.test, probabilities=1 - odd.test.probabilities)
    shuffled = np.random.default_rng(0).permutation(odd.test.probabilities)
    cases = {
        "every OOF probability is 0.25": change(odd, probabilities=np.full(TOTAL, 0.25, np.float32)),
        "every test probability is 0.5": replace(odd, test=replace(odd.test, probabilities=np.full(TESTS, 0.5, "f4"))),
        "it looks inverted": change(odd, probabilities=1 - odd.oof.probabilities),
        "not significantly better than chance": change(odd, probabilities=shuffled[:TOTAL]),
        "implausibly high": change(odd, probabilities=(LABELS * 0.9 + 0.05).astype(np.float32)),
        "the scales differ": replace(odd, test=replace(odd.test, probabilities=odd.test.probabilities / 1000)),
        "with 4 other runs is": replace(odd, test=upside_down),
        "a test.csv may be inverted or out of order": replace(odd, test=replace(odd.test, probabilities=shuffled)),
    }
    for words, run in cases.items():
        found = _examine_runs([*sound, run])
        assert list(found) == ["odd"] and words in found["odd"], (words, found)


@pytest.mark.parametrize(("turned", "words"), [(False, "implausibly high"), (True, "it looks inverted")])
def test_labels_as_predictions_are_named_in_few_rows_too(turned: bool, words: str) -> None:
    """The intervals of few rows are too wide to distinguish them from chance."""
    run, rows = make_run("few", 1), slice(0, 30)
    oof = run.oof
    values = np.abs(oof.labels[rows] - int(turned)).astype(np.float32)
    few = replace(run, oof=replace(oof, ids=oof.ids[rows], labels=oof.labels[rows], fold=oof.fold[rows] * 0,
                                   probabilities=values), slides=None, folds=None)  # fmt: skip
    assert words in _examine_runs([few])["few"]


def test_of_two_runs_at_odds_on_the_test_patches_both_are_named() -> None:
    one, other = make_run("one", 1), make_run("other", 2)
    turned = replace(other, test=replace(other.test, probabilities=1 - other.test.probabilities))
    assert set(_examine_runs([one, turned])) == {"one", "other"}


def test_suspects_are_left_out_only_on_request(call: Call, data: DataDir, two: list[RunDir]) -> None:
    odd = make_run("odd", 3)
    suspect = put(two[0].root.parent, change(odd, probabilities=1 - odd.oof.probabilities))
    everyone = [*(one.root for one in two), suspect.root, "--data", data.root, "--out", data.root / "s.csv"]
    code, _, said = call("ensemble", *everyone)
    assert code == 0 and "odd: OOF AUC" in said and "kept; --only-sound excludes it" in said
    with_it = (data.root / "s.csv").read_bytes()
    code, shown, said = call("ensemble", *everyone, "--only-sound")
    assert code == 0 and "(left out)" in said and "odd 0." not in shown
    ensemble_runs(two, data, data.root / "t.csv")
    assert (data.root / "s.csv").read_bytes() == (data.root / "t.csv").read_bytes() != with_it
    code, shown, said = call("ensemble", *everyone[2:], "--only-sound")
    assert (code, shown) == (1, "") and "every run was excluded by --only-sound" in said


def test_a_method_that_is_not_taken_is_named_with_the_reason(call: Call, data: DataDir, two: list[RunDir]) -> None:
    arguments = [*(one.root for one in two), "--data", data.root, "--out", data.root / "s.csv"]
    code, shown, said = call("ensemble", *arguments, "--method", "stack")
    assert (
        code == 0
        and "method: mean" in shown
        and "stack: its gain over the mean" in said
        and "is not significant" in said
    )
    code, shown, said = call("ensemble", *arguments, "--method", "magic")
    assert (code, shown) == (2, "") and said.count("\n") == 1 and "--method is 'magic'" in said


def test_faults_name_the_file_that_was_asked_for(data: DataDir, tmp_path: Path) -> None:
    run = make_run("flat", 3)
    flat = put(tmp_path, replace(run, test=replace(run.test, probabilities=np.full(TESTS, 0.5, np.float32))))
    with pytest.raises(TableError) as caught:
        ensemble_runs([flat], data, data.root / "s.csv")
    assert str(caught.value).startswith(f"{data.root / 's.csv'}: every value is 0.5")


def test_runs_that_cancel_out_are_named(data: DataDir, two: list[RunDir], tmp_path: Path) -> None:
    run = load_run(two[0])
    mirror = replace(change(run, probabilities=1 - run.oof.probabilities), name="mirror")
    place = put(tmp_path, replace(mirror, test=replace(run.test, probabilities=1 - run.test.probabilities)))
    with pytest.raises(RunError, match=r"\(0.5\) for every patch; mirror: OOF AUC .* it looks inverted"):
        ensemble_runs([two[0], place], data, data.root / "s.csv")
    assert ensemble_runs([two[0], place], data, data.root / "s.csv", only_sound=True)


def read_probabilities(path: Path) -> np.ndarray:
    return np.array([float(line.split(",")[1]) for line in path.read_text().splitlines()[1:]])


def test_calibrating_keeps_the_order_and_mends_the_probabilities(data: DataDir, two: list[RunDir]) -> None:
    plain = ensemble_runs(two, data, data.root / "plain.csv")
    scaled = ensemble_runs(two, data, data.root / "scaled.csv", calibrate=True)
    found = scaled.ensemble.calibration
    assert found.applied and found.temperature == pytest.approx(plain.oof.temperature, rel=1e-6)
    assert scaled.oof.log_loss < plain.oof.log_loss and scaled.oof.log_loss <= found.after.log_loss
    assert scaled.oof.auc == plain.oof.auc == found.auc and scaled.oof.auc_interval == plain.oof.auc_interval
    before, after = read_probabilities(data.root / "plain.csv"), read_probabilities(data.root / "scaled.csv")
    assert (np.diff(after[np.argsort(before)]) >= 0).all() and (before != after).any()


def test_a_temperature_that_does_not_help_other_folds_is_not_applied(data: DataDir, tmp_path: Path) -> None:
    """One fold is overconfident and the others are not, so a temperature from the other folds is worse."""
    run = make_run("odd", 3)
    logits = np.log(run.oof.probabilities / (1 - run.oof.probabilities)) * np.where(FOLD == 0, 9, 0.5)
    place = put(tmp_path, change(run, probabilities=(1 / (1 + np.exp(-logits))).astype(np.float32)))
    plain = ensemble_runs([place], data, data.root / "plain.csv")
    scaled = ensemble_runs([place], data, data.root / "scaled.csv", calibrate=True)
    assert not scaled.ensemble.calibration.applied and scaled.oof == plain.oof
    assert (data.root / "plain.csv").read_bytes() == (data.root / "scaled.csv").read_bytes()


def put_fold(run_dir: RunDir, number: int, run: Run) -> RunDir:
    """The predictions of one fold, in its folder inside the run."""
    rows = np.flatnonzero(np.equal(FOLD, number))
    oof = Oof([IDS[row] for row in rows], LABELS[rows], FOLD[rows], run.oof.probabilities[rows])
    return put(run_dir.root, replace(run, name=f"fold{number}", oof=oof))


def test_a_fold_given_as_a_run_uses_the_fold_file_of_its_run(call: Call, data: DataDir, tmp_path: Path) -> None:
    run = make_run("first", 1)
    one = put_fold(put_with_slides(tmp_path / "runs", run), 2, run)
    found = load_run(one)
    assert found.by_slide and found.slides == [SLIDES[row] for row in np.flatnonzero(np.equal(FOLD, 2))]
    code, shown, said = call("ensemble", one.root, "--data", data.root, "--out", data.root / "s.csv")
    assert code == 0 and "fold2: OOF AUC" in shown and "fold 2 only" in said
    assert "no fold file" not in said and "no slide ids" not in said
    one.root.rename(one.root.with_name("fold3"))
    with pytest.raises(TableError, match="fold3/oof.csv.*They belong to another fold file"):
        load_run(RunDir(one.root.with_name("fold3")))


@pytest.mark.parametrize("command", ["ensemble", "report"])
def test_a_folder_of_runs_is_answered_with_its_runs(
    command: str, call: Call, data: DataDir, two: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(two[0].root.parent.parent)
    where = ["--data", data.root, "--out", "s.csv" if command == "ensemble" else "r.html"]
    code, _, said = call(command, "runs", *where)
    assert code == 1 and said == (
        "claris: runs: a folder of runs; expected one run. Give one of them: runs/first, runs/second\n"
    )
    for name in ("third", "fourth"):
        put(two[0].root.parent, make_run(name, 3))
    assert "runs/first, runs/fourth, runs/second and 1 more\n" in call(command, "runs", *where)[2]

"""Weights over runs: on the simplex, fitted without the rows that they are scored on, the same in any order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claris_kaggle import blending, ensemble
from claris_kaggle.blending import FITTED, METHODS, fit, nested, to_space
from claris_kaggle.ensemble import Run, choose, combine
from claris_kaggle.errors import RunError, UsageError
from claris_kaggle.metrics import auc
from claris_kaggle.paths import DataDir, RunDir
from claris_kaggle.predictions import Oof, TestPredictions, write_run_oof, write_test
from claris_kaggle.submission import check_submission, submit_runs
from claris_kaggle.tables import read_sample

IDS = [f"{number:040x}" for number in range(600)]
TEST_IDS = [f"{number:040x}" for number in range(900, 980)]
FOLD = np.arange(600) % 5


def columns_of(seed: int, noises: tuple[float, ...] = (0.8, 1.0, 2.5)) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities of runs of which each has noise of its own."""
    generator = np.random.default_rng(seed)
    labels = (generator.random(600) < 0.4).astype(np.int8)
    logits = [2 * labels - 1 + generator.normal(0, noise, 600) for noise in noises]
    return labels, (1 / (1 + np.exp(-np.stack(logits, axis=1)))).astype(np.float32).astype(np.float64)


def make_runs(seed: int, noises: tuple[float, ...] = (0.8, 1.0, 2.5)) -> list[Run]:
    labels, columns = columns_of(seed, noises)
    test = np.random.default_rng(seed + 1).random((80, len(noises))).astype(np.float32)
    return [
        Run(f"run{number}", Oof(IDS, labels, FOLD, columns[:, number].astype(np.float32)),
            TestPredictions(TEST_IDS, test[:, number]))
        for number in range(len(noises))
    ]  # fmt: skip


@given(st.integers(0, 10_000), st.sampled_from(FITTED))
@settings(max_examples=30, deadline=None)
def test_weights_lie_on_the_simplex_and_results_in_0_to_1(seed: int, method: str) -> None:
    labels, columns = columns_of(seed)
    space = to_space(columns, METHODS[method].space)
    blend = fit(method, labels, space)
    if method != "stack":
        assert (blend.weights >= 0).all() and blend.weights.sum() == pytest.approx(1, abs=1e-9)
    result = blend.apply(space)
    assert result.min() >= 0 and result.max() <= 1


@pytest.mark.parametrize("method", METHODS)
def test_a_nested_result_never_uses_a_rows_own_label(method: str) -> None:
    labels, columns = columns_of(1)
    before = nested(method, labels, columns, FOLD)
    flipped = np.where(FOLD == 3, 1 - labels, labels)
    after = nested(method, flipped, columns, FOLD)
    assert np.array_equal(before[FOLD == 3], after[FOLD == 3])
    if method in FITTED:
        assert not np.array_equal(before, after)


@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_neither_the_order_of_runs_nor_a_copy_changes_a_byte(method: str) -> None:
    runs = make_runs(2)
    copy = Run("copy", runs[1].oof, runs[1].test)
    results = [combine(some, method) for some in (runs, runs[::-1], [*runs, copy], [copy, *runs])]
    assert len({one.oof.probabilities.tobytes() + one.test.probabilities.tobytes() for one in results}) == 1
    assert results[2].evidence["copies"] in ({"copy": "run1"}, {"run1": "copy"})


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_rows_is_no_matter(method: str) -> None:
    labels, columns = columns_of(3)
    order = np.random.default_rng(0).permutation(600)
    straight = nested(method, labels, columns, FOLD)
    shuffled = nested(method, labels[order], columns[order], FOLD[order])
    assert shuffled == pytest.approx(straight[order], abs=1e-6)


def test_ranks_do_not_change_under_a_monotone_map() -> None:
    labels, columns = columns_of(4)
    assert np.array_equal(nested("rank", labels, columns, FOLD), nested("rank", labels, columns**2, FOLD))


def test_fitted_weights_prefer_the_better_run_and_gain_over_the_mean() -> None:
    labels, columns = columns_of(5, (0.8, 4.0, 4.0))
    mean = auc(labels, nested("mean", labels, columns, FOLD))
    for method in FITTED:
        weights = fit(method, labels, to_space(columns, METHODS[method].space)).weights
        assert weights[0] == max(weights), method
        assert auc(labels, nested(method, labels, columns, FOLD)) > mean, method


def test_the_smallest_log_loss_is_that_of_a_fine_grid() -> None:
    labels, columns = columns_of(6, (0.8, 1.5))
    right = np.where(labels[:, None] == 1, columns, 1 - columns)
    grid = np.linspace(0, 1, 2001)
    losses = [-np.log(right @ [share, 1 - share]).mean() for share in grid]
    assert fit("logloss", labels, columns).weights[0] == pytest.approx(grid[int(np.argmin(losses))], abs=2e-3)


def test_the_counted_auc_is_scikit_learns() -> None:
    labels, columns = columns_of(7)
    coarse = np.round(columns[:, 0] * (blending.LEVELS - 1)).astype(np.int32)
    assert blending.counted_auc(coarse[labels == 1], coarse[labels == 0]) == pytest.approx(
        auc(labels, coarse), abs=1e-12
    )


def test_auto_takes_the_mean_unless_another_gains_for_sure() -> None:
    equal = make_runs(8, (1.0, 1.0, 1.0))
    assert combine(equal, "auto").evidence["method"] == "mean"
    unequal = make_runs(9, (0.6, 6.0, 6.0, 6.0))
    found = combine(unequal, "auto").evidence
    assert found["method"] != "mean" and found["methods"][found["method"]]["gain"]["interval"][0] > 0
    assert set(found["methods"]) == set(METHODS)
    assert found["methods"][found["method"]]["auc"] >= found["methods"]["mean"]["auc"]


def test_one_run_or_one_fold_leaves_nothing_to_weigh() -> None:
    run = make_runs(10)[0]
    assert combine([run], "auto").evidence["method"] == "mean"
    labels, columns = columns_of(10)
    one_fold = np.zeros(600, dtype=np.int64)
    assert choose(Oof(IDS, labels, one_fold, columns[:, 0].astype(np.float32)), columns, None)[0] == "mean"
    with pytest.raises(RunError, match=r"outside fold 0; --method stack fits its weights there"):
        nested("stack", labels, columns, one_fold)


def test_runs_that_something_speaks_against_are_named_and_left_out_on_request() -> None:
    runs = make_runs(11)
    labels = runs[0].oof.labels
    constant = Run("constant", Oof(IDS, labels, FOLD, np.full(600, 0.25, np.float32)), runs[0].test)
    inverted = Run("inverted", Oof(IDS, labels, FOLD, 1 - runs[0].oof.probabilities), runs[1].test)
    perfect = Run("perfect", Oof(IDS, labels, FOLD, labels.astype(np.float32)), runs[2].test)
    all_runs = [*runs, constant, inverted, perfect]
    found = combine(all_runs).evidence
    assert set(found["remarks"]) == {"constant", "inverted", "perfect"} and found["left_out"] == []
    assert "every OOF probability is 0.25" in found["remarks"]["constant"]
    assert "inverted" in found["remarks"]["inverted"] and "too good to be true" in found["remarks"]["perfect"]
    sound = combine(all_runs, only_sound=True)
    assert sound.oof.probabilities.tobytes() == combine(runs).oof.probabilities.tobytes()
    with pytest.raises(RunError, match="nothing sound among the runs"):
        combine([constant], only_sound=True)


def test_wrong_names_are_refused() -> None:
    runs = make_runs(12)
    with pytest.raises(UsageError, match="--method is 'magic'"):
        combine(runs, "magic")
    with pytest.raises(UsageError, match="run0 is given more than once"):
        combine([runs[0], runs[0]])


def test_correlations_are_spearmans() -> None:
    from scipy.stats import spearmanr

    runs = make_runs(13)
    table = combine(runs).evidence["correlations"]
    expected = spearmanr(runs[0].oof.probabilities, runs[2].oof.probabilities).statistic
    assert table["run0"]["run2"] == pytest.approx(expected, abs=1e-12)


@pytest.fixture
def foreign(finished: RunDir, tmp_path: Path) -> RunDir:
    """The predictions of another tool: two files and nothing else."""
    run = ensemble.load_run(finished)
    place = RunDir(tmp_path / "foreign")
    place.root.mkdir()
    noise = np.random.default_rng(0)
    oof = np.clip(run.oof.probabilities + noise.normal(0, 0.1, len(run.oof.ids)), 0, 1)
    write_run_oof(place.oof, Oof(run.oof.ids, run.oof.labels, run.oof.fold, oof.astype(np.float32)))
    write_test(place.test, run.test.ids, noise.random(len(run.test.ids)).astype(np.float32))
    return place


def test_a_run_from_elsewhere_joins_and_what_is_unknown_is_said(
    finished: RunDir, foreign: RunDir, generated: DataDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from claris_kaggle.cli import main

    out, kept = tmp_path / "submission.csv", tmp_path / "both"
    arguments = [finished.root, foreign.root, "--data", generated.root, "--out", out, "--method", "auto", "--run", kept]
    assert main(["ensemble", *map(str, arguments)]) == 0
    shown = capsys.readouterr()
    assert "foreign: no fold file and no config of its own" in shown.err
    assert "taken: " in shown.out and "nested OOF AUC" in shown.out and "rank correlation" in shown.out
    check_submission(out, read_sample(generated.sample))
    assert ensemble.load_run(RunDir(kept)).oof.ids == ensemble.load_run(finished).oof.ids
    assert '"methods"' in (kept / "metrics.json").read_text() and '"methods"' in out.with_suffix(".json").read_text()
    assert main(["report", str(foreign.root), str(kept), "--out", str(tmp_path / "report.html")]) == 0


def test_runs_of_one_name_in_two_folders_are_told_apart(finished: RunDir, generated: DataDir, tmp_path: Path) -> None:
    other = RunDir(tmp_path / finished.root.name)
    other.root.mkdir()
    for path in (finished.oof, finished.test):
        (other.root / path.name).write_bytes(path.read_bytes())
    found = submit_runs([finished, other], generated, tmp_path / "submission.csv")
    assert set(found["ensemble"]["copies"]) | set(found["ensemble"]["copies"].values()) == {
        str(finished.root),
        str(other.root),
    }


def test_calibrating_keeps_the_order_and_mends_the_probabilities(
    finished: RunDir, generated: DataDir, tmp_path: Path
) -> None:
    plain = submit_runs([finished], generated, tmp_path / "plain.csv")
    scaled = submit_runs([finished], generated, tmp_path / "scaled.csv", calibrate=True)
    assert scaled["ensemble"]["temperature"] == pytest.approx(plain["oof"]["temperature"], rel=1e-6)
    values = [
        [float(line.split(",")[1]) for line in (tmp_path / name).read_text().splitlines()[1:]]
        for name in ("plain.csv", "scaled.csv")
    ]
    assert (np.diff(np.array(values[1])[np.argsort(values[0])]) >= 0).all() and values[0] != values[1]


def test_a_trained_run_is_not_overwritten_by_an_ensemble(finished: RunDir, generated: DataDir, tmp_path: Path) -> None:
    before = finished.oof.read_bytes()
    with pytest.raises(UsageError, match="a trained run"):
        submit_runs([finished], generated, tmp_path / "submission.csv", keep=finished)
    assert finished.oof.read_bytes() == before

"""Test comparisons of submissions, and of scores with OOF metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claris_kaggle.core.errors import TableError, UsageError
from claris_kaggle.core.paths import RunDir
from claris_kaggle.data.tables import write_table
from claris_kaggle.ensembling import ledger
from claris_kaggle.ensembling.combine import combine
from claris_kaggle.ensembling.comparison import _best_shift, _compare_pair, _Submission, _to_ranks, compare_submissions
from claris_kaggle.ensembling.ensemble_runs import ensemble_runs
from claris_kaggle.ensembling.runs import _load_runs
from claris_kaggle.ensembling.submission_file import _read_submission
from claris_kaggle.evaluation.metrics import auc
from tests.support.handmade import make_run, put, put_data

ROWS = 400
GENERATOR = np.random.default_rng(0)
IDS = [f"{number:040x}" for number in GENERATOR.permutation(ROWS)]
VALUES = GENERATOR.random(ROWS).astype(np.float32)
NOISY = np.clip(VALUES + GENERATOR.normal(0, 0.05, ROWS), 0, 1).astype(np.float32)


@pytest.fixture
def first(tmp_path: Path) -> Path:
    write_table(tmp_path / "first.csv", {"id": IDS, "label": VALUES})
    return tmp_path / "first.csv"


def compare_with_first(first: Path, ids: list[str], values: np.ndarray) -> str:
    """Return the remark on a second file compared with the first. The order of both does not matter."""
    second = first.with_name("second.csv")
    write_table(second, {"id": ids, "label": values})
    pairs = [compare_submissions(paths).pairs[0] for paths in ([first, second], [second, first])]
    assert pairs[0].rank_correlation == pytest.approx(pairs[1].rank_correlation)
    return pairs[0].remark


def test_files_that_agree_are_joined_by_id_and_shown_where_they_differ(first: Path) -> None:
    order = np.random.default_rng(1).permutation(ROWS)
    values = NOISY.copy()
    odd = int(np.argmin(VALUES))
    values[odd] = 1.0
    second = first.with_name("second.csv")
    write_table(second, {"id": [IDS[row] for row in order], "label": values[order]})
    pair = compare_submissions([first, second]).pairs[0]
    assert pair.rank_correlation > 0.95 and pair.remark == "" and pair.largest_differences[0].id == IDS[odd]


def test_a_file_that_is_upside_down_is_named(first: Path) -> None:
    assert "inverted" in compare_with_first(first, IDS, 1 - NOISY)


def test_values_in_the_order_of_sorted_ids_are_found(first: Path) -> None:
    assert "are matched to its sorted ids" in compare_with_first(first, IDS, NOISY[np.argsort(IDS)])


def test_ids_in_another_order_than_their_values_are_found(first: Path) -> None:
    other = [IDS[row] for row in np.random.default_rng(2).permutation(ROWS)]
    assert "by row, but not by id" in compare_with_first(first, other, NOISY)


def test_no_file_is_blamed_for_sorted_ids_that_do_not_fit_to_their_values(first: Path) -> None:
    """The values of either file may be those in the wrong order."""
    said = compare_with_first(first, sorted(IDS), NOISY)
    assert "by row, but not by id: in one of them the values are not in the order of the ids" in said


def test_shifted_rows_are_found_upside_down_as_well(first: Path) -> None:
    assert "if one is shifted by 7 rows:" in compare_with_first(first, IDS, np.roll(NOISY, 7))
    assert "if one is shifted by 7 rows and inverted" in compare_with_first(first, IDS, np.roll(1 - NOISY, -7))
    assert _best_shift(_to_ranks(VALUES), _to_ranks(np.roll(VALUES, 3)))[0] == -3
    order = np.random.default_rng(5).permutation(ROWS)  # the shift is in this file's own order, whatever the other's is
    assert "shifted by 7 rows" in compare_with_first(first, [IDS[row] for row in order], np.roll(NOISY[order], 7))


def test_shifted_rows_are_found_where_neighbours_resemble_each_other_and_where_only_a_part_is(first: Path) -> None:
    smooth = np.clip(np.cumsum(np.random.default_rng(3).normal(0, 0.05, ROWS)) % 1, 0, 1).astype(np.float32)
    write_table(first, {"id": IDS, "label": smooth})
    assert "shifted by 5 rows" in compare_with_first(first, IDS, np.roll(smooth, 5))
    write_table(first, {"id": IDS, "label": VALUES})
    assert "shifted by 1 row:" in compare_with_first(first, IDS, np.r_[NOISY[:100], np.roll(NOISY[100:], 1)])


def test_a_weak_file_upside_down_is_still_named(first: Path) -> None:
    weak = 0.3 * (1 - VALUES) + 0.7 * np.random.default_rng(4).random(ROWS).astype(np.float32)
    assert "inverted" in compare_with_first(first, IDS, weak)


@given(st.integers(0, 10_000), st.floats(0.3, 1.5))
@settings(max_examples=40, deadline=None)
def test_nothing_is_said_of_files_that_are_only_noisy(seed: int, noise: float) -> None:
    generator = np.random.default_rng(seed)
    truth = generator.normal(0, 2, ROWS)
    files = []
    for name in ("a", "b"):
        order = generator.permutation(ROWS)
        values = _to_ranks(truth + generator.normal(0, noise, ROWS)).astype(np.float32)
        files.append(_Submission(name, [IDS[row] for row in order], values[order]))
    pair = _compare_pair(*files)
    assert (pair.remark, pair.suspicious) == ("", False)


def test_a_file_of_nothing_is_said_to_be_so(first: Path) -> None:
    assert "almost uncorrelated" in compare_with_first(
        first, IDS, np.random.default_rng(9).random(ROWS).astype(np.float32)
    )


def test_files_of_the_same_order_are_said_to_score_the_same(first: Path) -> None:
    assert "Kaggle gives them the same score" in compare_with_first(first, IDS, VALUES / 2)
    assert compare_submissions([first, first]).pairs[0].largest_differences == []


def test_values_that_a_float32_would_merge_are_told_apart(first: Path) -> None:
    lines = [f"{name},{1 - 1e-8 * place:.12f}" for place, name in enumerate(IDS)]
    first.write_text("\n".join(["id,label", *lines]) + "\n")
    assert len(np.unique(_read_submission(first).values)) == len(IDS)


def test_too_few_rows_prove_nothing() -> None:
    a, b = (_Submission(name, IDS[:6], values[:6]) for name, values in (("a", VALUES), ("b", NOISY[::-1])))
    assert _compare_pair(a, b).suspicious is False
    assert (
        _compare_pair(_Submission("a", IDS[:1], VALUES[:1]), _Submission("b", IDS[:1], NOISY[:1])).suspicious is False
    )


def test_a_constant_file_and_the_one_at_odds_with_the_others_are_named(first: Path) -> None:
    files = [first]
    for name, values in (("noisy", NOISY), ("turned", 1 - NOISY), ("flat", np.full(ROWS, 0.5, np.float32))):
        files.append(first.with_name(f"{name}.csv"))
        write_table(files[-1], {"id": IDS, "label": values})
    assert compare_submissions(files[:3]).remarks == [f"{files[2]} disagrees with every other file"]
    assert compare_submissions([first, files[3]]).remarks == [f"{files[3]}: every value is 0.5"]
    assert compare_submissions(files[:2]).remarks == []


def test_what_cannot_be_compared_is_refused(first: Path) -> None:
    with pytest.raises(UsageError, match="one submission; a comparison needs at least two"):
        compare_submissions([first])
    write_table(first.with_name("other.csv"), {"id": [*IDS[1:], "f" * 40], "label": VALUES})
    with pytest.raises(TableError, match="1 id"):
        compare_submissions([first, first.with_name("other.csv")])
    with pytest.raises(UsageError, match="1 runs for 2 files"):
        compare_submissions([first, first], [RunDir(first.parent)])


def test_the_verb_tells_the_gain_of_a_blend_where_the_runs_are_known(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    data = put_data(tmp_path / "data")
    runs = [put(tmp_path / folder, make_run("same", seed)) for folder, seed in (("x", 1), ("y", 2))]
    files = [tmp_path / name for name in ("a.csv", "b.csv")]
    for run, path in zip(runs, files, strict=True):
        ensemble_runs([run], data, path)
    places = [run.root for run in runs]
    code, shown, _ = call("submission", "compare", *files, "--runs", *places, "--json")
    blend = json.loads(shown)["blend"]
    assert code == 0 and list(blend["runs"]) == [str(place) for place in places] and blend["remarks"] == []
    together = combine(_load_runs(runs))
    assert blend["mean"] == auc(together.oof.labels, together.oof.probabilities) > max(blend["runs"].values())
    assert blend["gain"]["difference"] == pytest.approx(blend["mean"] - max(blend["runs"].values()))
    code, shown, _ = call("submission", "compare", *files, "--runs", *places[::-1])
    assert code == 0 and shown.count("does not match the test predictions of") == 2 and "mean of all: OOF AUC" in shown


def test_a_flag_of_the_other_action_is_wrong_use(call: Callable[..., tuple[int, str, str]], first: Path) -> None:
    for action, flags, words in (
        ("check", [], "no --data"),
        ("check", ["--data", first.parent, "--runs", first.parent], "this flag is only for submission compare"),
        ("compare", ["--data", first.parent], "it belongs to check"),
    ):
        code, shown, said = call("submission", action, first, first, *flags)
        assert (code, shown) == (2, "") and words in said and said.count("\n") == 1


def make_entry(ref: int, oof: float, public: float) -> ledger.LedgerEntry:
    """Return a ledger line with a score."""
    known = {"ref": str(ref), "oof_auc": f"{oof}", "oof_low": f"{oof - 0.01}", "oof_high": f"{oof + 0.01}"}
    return ledger.LedgerEntry(**known, public=f"{public}")


def test_scores_outside_the_oof_interval_are_told_with_the_usual_reason() -> None:
    lines = [
        make_entry(1, 0.96, 0.965),
        make_entry(2, 0.97, 0.93),
        make_entry(3, 0.95, 0.99),
        make_entry(4, 0.98, 0.985),
    ]
    found = ledger.describe_agreement(lines)
    assert [text.split(":")[0] for text in found.outside_interval] == ["2", "3"]
    assert "below the OOF interval" in found.outside_interval[0] and "above" in found.outside_interval[1]
    assert found.correlation["public"] == pytest.approx(-0.4) and "private" not in found.correlation
    assert (
        ledger.describe_agreement(lines[:3]).correlation == {} and ledger.describe_agreement([]).outside_interval == []
    )
    assert ledger.describe_agreement(lines[:3]).scored == {"public": 3, "private": 0}


def test_scores_that_are_no_figures_are_left_out_of_account() -> None:
    texts = ("nan", "inf", "-1", "1e9", "")
    odd = [replace(make_entry(ref, 0.96, float("nan")), public=text) for ref, text in enumerate(texts)]
    found = ledger.describe_agreement(odd + [make_entry(9, 0.95 + ref / 100, 0.96 + ref / 100) for ref in range(4)])
    assert found.outside_interval == [] and found.scored["public"] == 4 and found.correlation["public"] == 1
    assert ledger.sort_best_first(odd)[0].ref == "0"


def test_a_line_of_any_words_is_written_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    ledger.record_submission(path, ledger.LedgerEntry(ref="7", file='a "new", better\n.csv', status="PENDING"))
    ledger.record_submission(path, ledger.LedgerEntry(ref="7", public="0.97", status=""))
    (line,) = ledger.read_ledger(path)
    assert (line.file, line.public, line.status) == ("a  new   better .csv", "0.97", "PENDING")


def test_an_empty_ledger_says_so(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, shown, said = call("ledger", "--ledger", tmp_path / "l.csv")
    assert (code, shown) == (0, "") and "no submissions yet" in said
    code, shown, _ = call("ledger", "--ledger", tmp_path / "l.csv", "--json")
    assert code == 0 and json.loads(shown)["submissions"] == []
    one = make_entry(1, 0.96, 0.9)
    ledger.record_submission(tmp_path / "l.csv", one)
    code, shown, said = call("ledger", "--ledger", tmp_path / "l.csv")
    assert code == 0 and "1 of 4 scored submissions" in said and "below the OOF interval" in said

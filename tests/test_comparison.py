"""Submissions side by side, and scores beside OOF figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from claris_kaggle import ledger
from claris_kaggle.comparison import best_shift, compare_submissions, to_ranks
from claris_kaggle.errors import TableError, UsageError
from claris_kaggle.paths import DataDir, RunDir
from claris_kaggle.tables import write_table

ROWS = 400
GENERATOR = np.random.default_rng(0)
IDS = [f"{number:040x}" for number in GENERATOR.permutation(ROWS)]
VALUES = GENERATOR.random(ROWS).astype(np.float32)
NOISY = np.clip(VALUES + GENERATOR.normal(0, 0.05, ROWS), 0, 1).astype(np.float32)


@pytest.fixture
def first(tmp_path: Path) -> Path:
    write_table(tmp_path / "first.csv", {"id": IDS, "label": VALUES})
    return tmp_path / "first.csv"


def remark(first: Path, ids: list[str], values: np.ndarray) -> str:
    """What is said of a second file beside the first, in both orders alike."""
    second = first.with_name("second.csv")
    write_table(second, {"id": ids, "label": values})
    pairs = [compare_submissions(paths)["pairs"][0] for paths in ([first, second], [second, first])]
    assert pairs[0]["rank_correlation"] == pytest.approx(pairs[1]["rank_correlation"])
    return pairs[0]["remark"]


def test_files_that_agree_are_joined_by_id_and_shown_where_they_differ(first: Path) -> None:
    order = np.random.default_rng(1).permutation(ROWS)
    values = NOISY.copy()
    odd = int(np.argmin(VALUES))
    values[odd] = 1.0
    second = first.with_name("second.csv")
    write_table(second, {"id": [IDS[row] for row in order], "label": values[order]})
    pair = compare_submissions([first, second])["pairs"][0]
    assert pair["rank_correlation"] > 0.95 and pair["remark"] == "" and pair["most_apart"][0]["id"] == IDS[odd]


def test_a_file_that_is_upside_down_is_named(first: Path) -> None:
    assert "upside down" in remark(first, IDS, 1 - NOISY)


def test_values_in_the_order_of_sorted_ids_are_found(first: Path) -> None:
    by_sorted = NOISY[np.argsort(IDS)]
    assert "stand in the order of sorted ids" in remark(first, IDS, by_sorted)


def test_ids_in_another_order_than_their_values_are_found(first: Path) -> None:
    other = [IDS[row] for row in np.random.default_rng(2).permutation(ROWS)]
    assert "row by row, but not by id" in remark(first, other, NOISY)


def test_shifted_rows_are_found(first: Path) -> None:
    assert "shifted by 7 rows" in remark(first, IDS, np.roll(NOISY, 7))
    assert best_shift(to_ranks(VALUES), to_ranks(np.roll(VALUES, 3)))[0] == -3


def test_a_file_of_nothing_is_said_to_be_so(first: Path) -> None:
    assert "next to nothing in common" in remark(first, IDS, np.random.default_rng(9).random(ROWS).astype(np.float32))


def test_what_cannot_be_compared_is_refused(first: Path) -> None:
    with pytest.raises(UsageError, match="one submission; two or more"):
        compare_submissions([first])
    write_table(first.with_name("other.csv"), {"id": [*IDS[1:], "f" * 40], "label": VALUES})
    with pytest.raises(TableError, match="1 id"):
        compare_submissions([first, first.with_name("other.csv")])
    with pytest.raises(UsageError, match="1 runs for 2 files"):
        compare_submissions([first, first], [RunDir(first.parent)])


def test_the_verb_tells_the_gain_of_a_blend_where_the_runs_are_known(
    finished: RunDir, generated: DataDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from claris_kaggle.cli import main
    from claris_kaggle.submission import submit_runs

    other = RunDir(tmp_path / "other")
    other.root.mkdir()
    (other.root / "test.csv").write_bytes(finished.test.read_bytes())
    text = finished.oof.read_text().splitlines()
    (other.root / "oof.csv").write_text("\n".join([text[0], *(line + "1" for line in text[1:])]) + "\n")
    for name in ("a.csv", "b.csv"):
        submit_runs([finished], generated, tmp_path / name)
    files = [str(tmp_path / name) for name in ("a.csv", "b.csv")]
    assert main(["submission", "compare", *files, "--runs", str(finished.root), str(other.root), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["pairs"][0]["rank_correlation"] == pytest.approx(1) and "interval" in result["blend"]["gain"]
    assert main(["submission", "compare", *files]) == 0 and "rank correlation 1.0000" in capsys.readouterr().out
    assert main(["submission", "check", *files]) == 2 and "no --data" in capsys.readouterr().err


def line(ref: int, oof: float, public: float) -> ledger.Entry:
    """A scored line."""
    known = {"ref": str(ref), "oof_auc": f"{oof}", "oof_low": f"{oof - 0.01}", "oof_high": f"{oof + 0.01}"}
    return {**dict.fromkeys(ledger.COLUMNS, ""), **known, "public": f"{public}"}


def test_scores_outside_the_oof_interval_are_told_with_the_usual_reason() -> None:
    lines = [line(1, 0.96, 0.965), line(2, 0.97, 0.93), line(3, 0.95, 0.99), line(4, 0.98, 0.985)]
    found = ledger.agreement(lines)
    assert [text.split(":")[0] for text in found["apart"]] == ["2", "3"]
    assert "below the OOF interval" in found["apart"][0] and "above" in found["apart"][1]
    assert found["correlation"]["public"] == pytest.approx(-0.4) and "private" not in found["correlation"]
    assert ledger.agreement(lines[:3])["correlation"] == {} and ledger.agreement([])["apart"] == []

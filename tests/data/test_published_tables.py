"""Test tables as people publish them: read correctly, or refused with what to change."""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from claris_kaggle.core.errors import TableError
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data.fold_file import read_folds
from claris_kaggle.data.tables import read_slides
from claris_kaggle.ensembling.combine import _scoring_groups
from claris_kaggle.ensembling.ensemble_runs import ensemble_runs
from claris_kaggle.ensembling.runs import load_run
from claris_kaggle.ensembling.submission_file import check_submission, write_submission
from claris_kaggle.evaluation.predictions import TestPredictions, read_oof, read_test, write_run_oof, write_test
from tests.support.handmade import (
    FOLD,
    IDS,
    LABELS,
    SLIDES,
    TEST_IDS,
    TEST_LABELS,
    TESTS,
    TOTAL,
    make_run,
    predict,
    put,
    put_data,
    put_with_slides,
)

H = [f"{number:040x}" for number in (10, 11, 12)]
PLAIN = f"id,wsi\n{H[0]},s1\n{H[1]},s1\n{H[2]},s2\n"
SLIDE_MAPS = {
    "patch_id and slide_id": PLAIN.replace("id,wsi", "patch_id,slide_id").encode(),
    "image_id and case": PLAIN.replace("id,wsi", "image_id,case").encode(),
    "Image ID and Patient ID": PLAIN.replace("id,wsi", "Image ID,Patient ID").encode(),
    "file names": re.sub(r"([0-9a-f]{40})", r"train/\1.tif", PLAIN).encode(),
    "folders of Windows": re.sub(r"([0-9a-f]{40})", r"C:\\data\\\1.TIF", PLAIN).encode(),
    "upper-case ids": re.sub(r"([0-9a-f]{40})", lambda one: one[1].upper(), PLAIN).encode(),
    "semicolons": PLAIN.replace(",", ";").encode(),
    "tabs": PLAIN.replace(",", "\t").encode(),
    "a byte-order mark": b"\xef\xbb\xbf" + PLAIN.encode(),
    "UTF-16, as Excel writes it": PLAIN.replace(",", "\t").encode("utf-16"),
    "other columns in the code page of Windows": "".join(
        f"{line},{'Größe' if not n else 'Müller – 5 µm'}\r\n" for n, line in enumerate(PLAIN.split())
    ).encode("cp1252"),
    "line ends of an old Macintosh": PLAIN.replace("\n", "\r").encode(),
    "line ends of Windows": PLAIN.replace("\n", "\r\n").encode(),
    "no line break at the end": PLAIN.rstrip().encode(),
    "gzip": gzip.compress(PLAIN.encode()),
    "quotes": PLAIN.replace(",", '","').replace("\n", '"\n"').join(['"', '"']).removesuffix('""').encode(),
    "an index column": "".join(f"{n - 1 if n else ''},{line}\n" for n, line in enumerate(PLAIN.split())).encode(),
    "a counter named id": b"id,patch,wsi\n"
    + "".join(f"{n},{line}\n" for n, line in enumerate(PLAIN.split()[1:])).encode(),
    "more columns": PLAIN.replace("\n", ",x\n").replace("wsi,x", "wsi,center").encode(),
    "repeated rows that agree": PLAIN.encode() + PLAIN.split()[1].encode() + b"\n",
    "the first line of Excel": b"sep=,\r\n" + PLAIN.encode(),
    "empty columns at the end": PLAIN.replace("\n", ",,\n").encode(),
    "a comment": b"# made with OpenSlide\n" + PLAIN.encode(),
    "more ids": PLAIN.encode() + b"f" * 40 + b",s9\n",
}


def test_a_slide_that_is_written_in_several_ways_is_one_slide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for other in ("s1.tif", "S1", "s1.0"):
        path = tmp_path / f"{other}.csv"
        path.write_text(PLAIN.replace(f"{H[1]},s1", f"{H[1]},{other}"))
        assert read_slides(path, H) == ["s1", "s1", "s2"]
        assert f"1 slide written in several ways (s1 and {other}), each read as one" in capsys.readouterr().err


def read_refusal(read: Callable[[Path], object], path: Path, content: bytes) -> str:
    """Write a table with this content, and return the message with which `read` refuses it."""
    path.write_bytes(content)
    with pytest.raises(TableError) as caught:
        read(path)
    return str(caught.value)


def test_a_map_of_all_patches_of_a_slide_in_one_row_is_refused(tmp_path: Path) -> None:
    """The ids are separated by spaces. Only the row of a slide with a single patch has an id."""
    rows = f"s0,{IDS[0]}\ns1,{' '.join(IDS[1:99])}\ns2,{' '.join(IDS[99:])}\n"
    message = read_refusal(lambda path: read_slides(path, IDS), tmp_path / "m.csv", f"wsi,id\n{rows}".encode())
    assert f"m.csv: 1 of 600 training ids with a slide (first row {IDS[0]},s0); " in message
    assert message.endswith("expected at least 10%. Give the complete slide map of this competition")


OTHER_TABLES = {
    "Parquet": (b"PAR1" + bytes(40), "a Parquet file; expected a CSV file. Write it as CSV"),
    "a pickle": (b"\x80\x04\x95" + bytes(40), "a pickle; expected a CSV file"),
    "old Excel": (b"\xd0\xcf\x11\xe0" + bytes(40), "an old Excel workbook"),
    "JSON": (b'{"id": "s1"}\n', "JSON; expected a CSV file"),
    "no header": (PLAIN.split("\n", 1)[1].encode(), "no header: the first line is"),
    "a slide for each patch": (
        b"id,slide\n" + b"".join(b"%040x,%d\n" % (n, n) for n in range(10, 40)), "each of 30 ids has a slide of its own"
    ),
    "exchanged column names": (
        b"id,wsi\n" + b"".join(b"s1,%040x\n" % n for n in range(10, 40)), "wsi has the patch ids; expected id and"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_TABLES)
def test_what_is_no_slide_map_is_named(name: str, tmp_path: Path) -> None:
    content, words = OTHER_TABLES[name]
    ids = [f"{number:040x}" for number in range(10, 40)]
    assert words in read_refusal(lambda path: read_slides(path, ids), tmp_path / "map.csv", content)


def test_a_workbook_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "map.xlsx", "w") as archive:
        archive.writestr("xl/workbook.xml", "x")
    with pytest.raises(TableError, match="an Excel workbook; expected a CSV file. Export the sheet"):
        read_slides(tmp_path / "map.xlsx", H)


def zip_tables(**files: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/") + ".csv", text)
    return stream.getvalue()


@pytest.mark.parametrize("name", SLIDE_MAPS)
def test_a_published_slide_map_is_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_bytes(SLIDE_MAPS[name])
    assert read_slides(tmp_path / "map.csv", H) == ["s1", "s1", "s2"]


def test_a_slide_map_in_an_archive_is_read(tmp_path: Path) -> None:
    (tmp_path / "map.zip").write_bytes(zip_tables(data__map=PLAIN, MACOSX__=""))
    with pytest.raises(TableError, match=r"an archive of data/map.csv, MACOSX/.csv|an archive of"):
        (tmp_path / "two.zip").write_bytes(zip_tables(one=PLAIN, two=PLAIN))
        read_slides(tmp_path / "two.zip", H)
    assert read_slides(tmp_path / "map.zip", H) == ["s1", "s1", "s2"]


@pytest.mark.parametrize("gap", ["", "unknown", "-1", "nan", "NA", "None", "Unknown", '""', "-1.0", "row"])
def test_patches_without_a_slide_stand_alone_and_are_counted(
    gap: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = PLAIN.replace(f"{H[0]},s1", f"{H[0]},{gap}") if gap != "row" else PLAIN.replace(f"{H[0]},s1\n", "")
    (tmp_path / "map.csv").write_text(text + "f" * 40 + ",s7\n")
    assert read_slides(tmp_path / "map.csv", H) == [H[0], "s1", "s2"]
    said = capsys.readouterr().err
    assert f"1 training id ({H[0]}) without a slide; each is treated as a slide of its own; 1 other id ignored" in said


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    return put_data(tmp_path / "data")


def simulate_saturated(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return float64 probabilities that are equal in float32: most are within 1e-9 of 1."""
    noisy = labels + np.random.default_rng(seed).normal(0, 0.8, len(labels))
    return 1 - 10.0 ** -(9 + noisy)


def put_saturated(folder: Path, name: str, seed: int) -> RunDir:
    """Write a run in float64, as pandas writes it."""
    place = RunDir(folder / name)
    place.root.mkdir(parents=True)
    rows = zip(IDS, LABELS, FOLD, simulate_saturated(LABELS, seed).tolist(), strict=True)
    place.oof.write_text("id,label,fold,probability\n" + "".join(f"{i},{y},{f},{p!r}\n" for i, y, f, p in rows))
    tests = zip(TEST_IDS, simulate_saturated(TEST_LABELS, seed + 1).tolist(), strict=True)
    place.test.write_text("id,probability\n" + "".join(f"{name},{value!r}\n" for name, value in tests))
    return place


def test_float64_predictions_keep_their_ranks_from_the_file_to_the_submission(data: DataDir, tmp_path: Path) -> None:
    place = put_saturated(tmp_path, "theirs", 1)
    exact = roc_auc_score(LABELS, simulate_saturated(LABELS, 1))
    assert abs(exact - roc_auc_score(LABELS, simulate_saturated(LABELS, 1).astype(np.float32))) > 0.05
    kept = RunDir(tmp_path / "kept")
    result = ensemble_runs([place], data, tmp_path / "s.csv", keep=kept)
    assert result.oof.auc == pytest.approx(exact, abs=1e-12)
    values = {line.split(",")[0]: float(line.split(",")[1]) for line in (tmp_path / "s.csv").read_text().split()[1:]}
    assert [values[name] for name in TEST_IDS] == simulate_saturated(TEST_LABELS, 2).tolist()
    assert read_oof(kept.oof).probabilities.tolist() == simulate_saturated(LABELS, 1).tolist()
    assert load_run(kept).measured.value == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("method", ["mean", "logit", "auto"])
def test_blends_of_float64_runs_have_no_ties(method: str, data: DataDir, tmp_path: Path) -> None:
    places = [put_saturated(tmp_path, name, seed) for name, seed in (("first", 1), ("second", 5))]
    ensemble_runs([*places, put(tmp_path, make_run("ours", 3))], data, tmp_path / "s.csv", method=method)
    assert check_submission(tmp_path / "s.csv", TEST_IDS).tied < 0.01 * TESTS


def test_calibrated_float64_predictions_stay_distinct(data: DataDir, tmp_path: Path) -> None:
    result = ensemble_runs([put_saturated(tmp_path, "theirs", 1)], data, tmp_path / "s.csv", calibrate=True)
    assert result.ensemble.calibration is not None and result.ensemble.calibration.applied
    assert check_submission(tmp_path / "s.csv", TEST_IDS).tied == 0


def test_float32_predictions_are_read_and_written_as_before(tmp_path: Path) -> None:
    run = make_run("ours", 3)
    place = put(tmp_path, run)
    before = place.oof.read_bytes(), place.test.read_bytes()
    oof, test = read_oof(place.oof), read_test(place.test)
    assert oof.probabilities.dtype == test.probabilities.dtype == np.float32
    write_run_oof(place.oof, oof)
    write_test(place.test, test.ids, test.probabilities)
    assert (place.oof.read_bytes(), place.test.read_bytes()) == before


ROWS = list(zip(IDS, LABELS.tolist(), FOLD.tolist(), strict=True))


def table(header: str, rows: list[tuple[object, ...]], sign: str = ",") -> str:
    return header.replace(",", sign) + "\n" + "".join(sign.join(map(str, row)) + "\n" for row in rows)


FOLD_FILES = {
    "kfold without groups": (table("id,label,kfold", ROWS), "read kfold as the fold, there is no group column"),
    "fold_id without labels": (table("id,fold_id", [(i, f) for i, _, f in ROWS]), "read fold_id as the fold"),
    "more columns and slides": (
        table("id,label,wsi,width,fold", [(i, y, f"s{n % 20}", 96, f) for n, (i, y, f) in enumerate(ROWS)]),
        "read fold as the fold, wsi as the group",
    ),
    "an index column": (table(",id,label,fold", [(n, *row) for n, row in enumerate(ROWS)]), "read fold as the fold"),
    "numbered from 1": (table("id,label,fold", [(i, y, f + 1) for i, y, f in ROWS]), "1 to 5 are read as 0 to 4"),
    "numbered from 1 with our columns": (
        table("id,label,group,fold", [(i, y, i, f + 1) for i, y, f in ROWS]),
        "1 to 5 are read as 0 to 4",
    ),
    "semicolons": (table("id,label,fold", ROWS, ";"), "read fold as the fold"),
    "tabs and file names": (table("image_id,target,fold", [(f"{i}.tif", y, f) for i, y, f in ROWS], "\t"), "read fold"),
    "line ends of an old Macintosh": (table("id,label,fold", ROWS).replace("\n", "\r"), "read fold as the fold"),
    "names of folds": (table("id,label,fold", [(i, y, f"fold_{f}") for i, y, f in ROWS]), "read fold as the fold"),
    "floats": (table("id,label,fold", [(i, y, f"{f}.0") for i, y, f in ROWS]), "read fold as the fold"),
}


@pytest.mark.parametrize("name", FOLD_FILES)
def test_a_published_fold_file_is_read(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, words = FOLD_FILES[name]
    (tmp_path / "f.csv").write_text(text, newline="")
    folds = read_folds(tmp_path / "f.csv", dict(zip(IDS, LABELS.tolist(), strict=True)))
    assert folds.ids == IDS and folds.fold.tolist() == FOLD.tolist() and folds.labels.tolist() == LABELS.tolist()
    assert words in capsys.readouterr().err


BAD_FOLD_FILES = {
    "an empty fold": (
        table("id,label,fold", [(i, y, f + (f > 2)) for i, y, f in ROWS]),
        "folds 0, 1, 2 and 2 more: fold 3 has no patches; expected at least one patch of each fold. "
        "Number the folds in the file from 0 to 4, without gaps",
    ),
    "a single fold": (table("id,label,fold", [(i, y, 0) for i, y, _ in ROWS]), "a single fold (0)"),
    "test rows": (table("id,label,fold", [(i, y, f - 1) for i, y, f in ROWS]), "120 invalid fold numbers ('-1' in"),
    "no folds": (table("id,label,cluster", ROWS), "expected a column fold (or kfold, fold_id, folds). Rename that"),
    "no labels": (table("id,fold", [(i, f) for i, _, f in ROWS]), "no label column. Add the label of each patch"),
    "cut off": (table("id,label,kfold", ROWS)[:-1], "the last line has no line break. Correct that in the file"),
    "a slide on both sides": (
        table("id,label,wsi,fold", [(i, y, "s1", f) for i, y, f in ROWS]), "1 group in more than one fold (s1)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FOLD_FILES)
def test_a_faulty_fold_file_of_another_tool_is_refused_and_never_replaced(name: str, tmp_path: Path) -> None:
    text, words = BAD_FOLD_FILES[name]
    message = read_refusal(read_folds, tmp_path / "f.csv", text.encode())
    assert words in message and f"--out {tmp_path}" not in message


def test_folds_of_another_tool_are_checked_against_the_data(call: Call, data: DataDir, tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text(table("id,kfold", [(i, f) for i, _, f in ROWS[1:]]))
    code, _, said = call("folds", "--data", data.root, "--check", tmp_path / "f.csv")
    assert code == 1 and f"1 id of train_labels.csv missing ({IDS[0]})" in said and "folds --data DIR --out NEW" in said


P = predict(LABELS, 7).astype(float).round(5).tolist()
OOF_ROWS = [(*row, p) for row, p in zip(ROWS, P, strict=True)]
OOF_FILES = {
    "pred and target": table("id,target,fold,pred", OOF_ROWS),
    "prob and kfold from 1": table("image_id,label,kfold,prob", [(i, y, f + 1, p) for i, y, f, p in OOF_ROWS]),
    "extra columns in another order": table("fold,pred,x,y_true,id", [(f, p, 9, y, i) for i, y, f, p in OOF_ROWS]),
    "an index column and .tif": table(
        ",id,label,fold,prediction", [(n, f"{i}.tif", y, f, p) for n, (i, y, f, p) in enumerate(OOF_ROWS)]
    ),
    "softmax": table("id,label,fold,prob_0,prob_1", [(i, y, f, 1 - p, p) for i, y, f, p in OOF_ROWS]),
    "softmax with names": table("id,label,fold,benign,malignant", [(i, y, f, 1 - p, p) for i, y, f, p in OOF_ROWS]),
    "classes beside probabilities": table(
        "id,label,fold,pred,prob", [(i, y, f, int(p > 0.5), p) for i, y, f, p in OOF_ROWS]
    ),
    "semicolons and decimal commas": table(
        "id,label,fold,prob", [(i, y, f, str(p).replace(".", ",")) for i, y, f, p in OOF_ROWS], ";"
    ),
    "labels as floats": table("id,label,fold,pred", [(i, f"{y}.0", f, p) for i, y, f, p in OOF_ROWS]),
}


@pytest.mark.parametrize("name", OOF_FILES)
def test_published_oof_predictions_are_read(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "oof.csv").write_text(OOF_FILES[name])
    oof = read_oof(tmp_path / "oof.csv")
    assert oof.ids == IDS and oof.labels.tolist() == LABELS.tolist()
    assert oof.probabilities.astype(str).astype(float).tolist() == pytest.approx(P, abs=1e-15)
    assert (oof.fold - oof.fold.min()).tolist() == FOLD.tolist()
    assert "as the probability of malignant" in capsys.readouterr().err


BAD_OOF_FILES = {
    "logits": (
        table("id,label,fold,pred", [(*row[:3], 9 * row[3] - 4) for row in OOF_ROWS]),
        "outside 0 to 1 .*; each must be a number from 0 to 1. Convert logits to probabilities",
    ),
    "logits by name": (table("id,label,fold,logit", OOF_ROWS), "expected probability, pred, .*Convert logits"),
    "logits of two classes": (
        table("id,label,fold,pred_0,pred_1", [(i, y, f, -3 * p, 3 * p) for i, y, f, p in OOF_ROWS]),
        "600 probabilities outside 0 to 1 .*softmax for two columns",
    ),
    "two sigmoids": (
        table("id,label,fold,p0,p1", [(i, y, f, p / 2, p) for i, y, f, p in OOF_ROWS]),
        "p0 and p1 do not add up to 1 in .*Keep only the probability of malignant",
    ),
    "two candidates": (
        table("id,label,fold,pred,prob", [(i, y, f, p / 2, p) for i, y, f, p in OOF_ROWS]),
        "pred, prob may be the probability; expected one of them. Keep one",
    ),
    "no labels": (table("id,pred", [(i, p) for i, _, _, p in OOF_ROWS]), "expected a column label .*Add the labels"),
    "cut off": (table("id,target,fold,pred", OOF_ROWS)[:-1], "cut off: the last line has no line break"),
    "no ids": (table("number,label,fold,pred", [(1, *row[1:]) for row in OOF_ROWS]), "expected a column id"),
}  # fmt: skip


def test_columns_that_are_not_utf8_are_refused_if_they_are_used(tmp_path: Path) -> None:
    """No encoding is guessed, because the same bytes are different letters in each code page."""

    def refused(read: Callable[[Path], object], text: str, words: str, encoding: str = "cp1252") -> None:
        message = read_refusal(read, tmp_path / "t.csv", text.encode(encoding))
        assert words in message and message.isascii()
        assert "expected text in UTF-8. Save it again as CSV in UTF-8" in message

    refused(
        lambda path: read_slides(path, H), PLAIN.replace("s2", "Müller"), "column wsi is not UTF-8 (M?ller in line 4)"
    )
    folds = table("id,label,wsi,fold", [(i, y, f"fänger{f}", f) for i, y, f in ROWS])
    refused(read_folds, folds, "column wsi is not UTF-8 (f?nger")
    refused(read_oof, table("id,label,fold,pred", [(f"ü/{i}", y, f, p) for i, y, f, p in OOF_ROWS]), "column id is not")
    ours = table("id,label,group,fold", [(i, y, f"fänger{f}", f) for i, y, f in ROWS])
    refused(read_folds, ours, "line 2 is not UTF-8")
    refused(lambda path: read_slides(path, H), PLAIN, "text in UTF-16 without a byte-order mark", "utf-16-le")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "cp1252"])
def test_exports_of_excel_are_read(encoding: str, tmp_path: Path) -> None:
    """The files have semicolons, decimal commas and a German comment, in each encoding that Excel writes."""
    rows = [(f"{i}.tif", y, f, str(p).replace(".", ","), "größer") for i, y, f, p in OOF_ROWS]
    text = table("id,label,fold,prob,Bemerkung", rows, ";").replace("\n", "\r\n")
    (tmp_path / "e.csv").write_bytes(text.encode(encoding))
    oof, folds = read_oof(tmp_path / "e.csv"), read_folds(tmp_path / "e.csv")
    assert oof.ids == folds.ids == IDS and oof.fold.tolist() == folds.fold.tolist() == FOLD.tolist()
    assert oof.probabilities.astype(str).astype(float).tolist() == pytest.approx(P, abs=1e-15)


@pytest.mark.parametrize("name", BAD_OOF_FILES)
def test_oof_predictions_that_are_no_probabilities_are_refused(name: str, tmp_path: Path) -> None:
    text, words = BAD_OOF_FILES[name]
    assert re.search(words, read_refusal(read_oof, tmp_path / "oof.csv", text.encode()))


@pytest.mark.parametrize("header", ["id,label", "id,prediction", "image_id,target", "Id,Pred"])
def test_published_test_predictions_are_read(header: str, tmp_path: Path) -> None:
    values = predict(TEST_LABELS, 8).astype(float).round(5).tolist()
    (tmp_path / "test.csv").write_text(table(header, [(f"{i}.tif", p) for i, p in zip(TEST_IDS, values, strict=True)]))
    assert read_test(tmp_path / "test.csv").probabilities.astype(str).astype(float).tolist() == values


def put_foreign(folder: Path, name: str, header: str, rows: list[tuple[object, ...]], seed: int = 7) -> RunDir:
    """Write a run whose OOF file has this header."""
    place = put(folder, make_run(name, seed))
    place.oof.write_text(table(header, rows))
    return place


def test_runs_with_the_same_partition_under_other_numbers_are_combined(data: DataDir, tmp_path: Path) -> None:
    turned = [(i, y, (7 - f) % 5 + 1, p) for i, y, f, p in OOF_ROWS]
    places = [put(tmp_path, make_run("ours", 3)), put_foreign(tmp_path, "theirs", "id,label,kfold,pred", turned)]
    results = [ensemble_runs(order, data, tmp_path / "s.csv", method="auto") for order in (places, places[::-1])]
    same = put_foreign(tmp_path, "same", "id,label,kfold,pred", OOF_ROWS)
    plain = ensemble_runs([places[0], same], data, tmp_path / "s.csv", method="auto")
    assert results[0].oof.auc == results[1].oof.auc == plain.oof.auc


def test_a_fold_file_beside_predictions_gives_them_their_folds(data: DataDir, tmp_path: Path) -> None:
    place = put_foreign(tmp_path, "theirs", "id,label,pred", [(i, y, p) for i, y, _, p in OOF_ROWS])
    place.folds.write_text(table("id,kfold", [(i, f + 1) for i, _, f in ROWS]))
    assert load_run(place).oof.fold.tolist() == FOLD.tolist()
    assert ensemble_runs([place], data, tmp_path / "s.csv").holdouts == []


def test_predictions_without_folds_take_those_of_another_run(call: Call, data: DataDir, tmp_path: Path) -> None:
    ours = put(tmp_path, make_run("ours", 3))
    theirs = put_foreign(tmp_path, "theirs", "id,label,pred", [(i, y, p) for i, y, _, p in OOF_ROWS])
    out = ["--data", data.root, "--out", tmp_path / "s.csv"]
    code, shown, said = call("ensemble", theirs.root, ours.root, *out, "--method", "stack")
    assert code == 0 and "theirs: no fold numbers; weights are scored by the folds of ours" in said
    assert "stack   nested OOF AUC" in shown


def test_runs_that_lack_a_few_ids_are_joined_on_request(call: Call, data: DataDir, tmp_path: Path) -> None:
    ours = put_with_slides(tmp_path, make_run("ours", 3))
    theirs = put_foreign(tmp_path, "theirs", "id,label,fold,pred", OOF_ROWS[2:])
    where = ["ensemble", ours.root, theirs.root, "--data", data.root, "--out", tmp_path / "s.csv"]
    code, _, said = call(*where)
    assert code == 1 and "2 training ids in only one of them" in said
    assert "Use --common-ids to combine them on the 598 training ids that both have" in said
    code, shown, said = call(*where, "--common-ids", "--save-run", tmp_path / "kept", "--json")
    assert code == 0 and f"ours: 598 of 600 ids are in all runs; not used: {IDS[0]}, {IDS[1]}" in said
    assert {one["patches"] for one in json.loads(shown)["runs"].values()} == {598}
    kept = load_run(RunDir(tmp_path / "kept"))
    assert len(kept.oof.ids) == 598 and kept.slides == SLIDES[2:]
    strangers = put_foreign(
        tmp_path, "strangers", "id,label,fold,pred", [(f"f{i[1:]}", *more) for i, *more in OOF_ROWS]
    )
    code, _, said = call("ensemble", ours.root, strangers.root, *where[3:], "--common-ids")
    assert code == 1 and "0 OOF ids in all runs" in said


def test_columns_of_any_name_are_read_where_they_are_named(call: Call, data: DataDir, tmp_path: Path) -> None:
    place = put_foreign(tmp_path, "odd", "id,dx,fold,stage2,score", [(*row[:3], row[3], 0.5) for row in OOF_ROWS])
    place.test.write_text(place.test.read_text().replace("probability", "stage2"))
    where = ["ensemble", place.root, "--data", data.root, "--out", tmp_path / "s.csv"]
    code, _, said = call(*where)
    assert code == 1 and "expected a column label (or target)" in said
    code, shown, _ = call(*where, "--columns", "dx=label,stage2=probability")
    exact = roc_auc_score([row[1] for row in OOF_ROWS], [row[3] for row in OOF_ROWS])
    assert code == 0 and shown.startswith(f"odd: OOF AUC {exact:.4f} (")
    place.test.rename(place.root / "submission.csv")
    assert call(*where, "--columns", "dx=label,stage2=probability")[0] == 0
    for wrong, status, words in (
        ("dx=label,stage3=probability", 1, "--columns names stage3. Correct the name"),
        ("dx", 2, "--columns has 'dx'; expected NAME=COLUMN"),
        ("dx=class", 2, "with COLUMN one of id, label, fold, probability"),
    ):
        code, _, said = call(*where, "--columns", wrong)
        assert code == status and words in said, said


HELD = [(i, y, p) for n, (i, y, _, p) in enumerate(OOF_ROWS) if n % 20 < 6]  # six whole slides


def test_a_holdout_is_accepted_and_scored_for_what_it_is(call: Call, data: DataDir, tmp_path: Path) -> None:
    place = put_foreign(tmp_path, "held", "id,label,pred", HELD)
    code, shown, said = call("ensemble", place.root, "--data", data.root, "--out", tmp_path / "s.csv")
    assert code == 0 and "held: a holdout of 180 patches, without folds" in said
    exact = roc_auc_score([y for _, y, _ in HELD], [p for *_, p in HELD])
    assert shown.startswith(f"held: holdout AUC {exact:.4f} (")
    assert call("report", place.root, "--out", tmp_path / "r.html")[0] == 0
    assert "AUC of one holdout, without folds" in (tmp_path / "r.html").read_text()
    assert "has all training patches" not in said


def test_a_file_of_all_training_patches_without_folds_is_told_to_name_them(
    call: Call, data: DataDir, tmp_path: Path
) -> None:
    place = put_foreign(tmp_path, "all", "id,label,pred", [(i, y, p) for i, y, _, p in OOF_ROWS])
    code, _, said = call("ensemble", place.root, "--data", data.root, "--out", tmp_path / "s.csv")
    assert code == 0 and "the holdout has all training patches: if several folds predicted them, add a column" in said


def test_one_fold_of_a_run_is_not_called_a_holdout(call: Call, data: DataDir, tmp_path: Path) -> None:
    place = put_foreign(tmp_path, "part", "id,label,fold,pred", [row for row in OOF_ROWS if row[2] == 3])
    code, shown, said = call("ensemble", place.root, "--data", data.root, "--out", tmp_path / "s.csv")
    assert code == 0 and "part: fold 3 only, 120 patches; the score is for those only" in said
    assert shown.startswith("part: OOF AUC") and "holdout" not in shown + said
    assert call("report", place.root, "--out", tmp_path / "r.html")[0] == 0
    assert "OOF AUC of fold 3 only" in (tmp_path / "r.html").read_text()


def test_an_ensemble_of_a_holdout_is_saved_without_folds(call: Call, data: DataDir, tmp_path: Path) -> None:
    held, ours = put_foreign(tmp_path, "held", "id,label,pred", HELD), put(tmp_path, make_run("ours", 3))
    where = ["--data", data.root, "--out", tmp_path / "s.csv", "--common-ids", "--save-run", tmp_path / "kept"]
    assert call("ensemble", held.root, ours.root, *where, "--method", "mean")[0] == 0
    assert load_run(RunDir(tmp_path / "kept")).is_holdout


def test_weights_on_a_holdout_are_scored_by_leaving_out_slides_or_refused(
    call: Call, data: DataDir, tmp_path: Path
) -> None:
    held, ours = put_foreign(tmp_path, "held", "id,label,pred", HELD), put(tmp_path, make_run("ours", 3))
    where = ["ensemble", held.root, ours.root, "--data", data.root, "--out", tmp_path / "s.csv"]
    code, _, said = call(*where)
    assert code == 1 and "Use --common-ids to combine them on the 180 training ids" in said
    code, shown, said = call(*where, "--common-ids")
    assert code == 0 and "ensemble: AUC" in shown and "holdout of 180 patches" in said
    code, _, said = call(*where, "--common-ids", "--method", "stack")
    assert code == 1 and "of one holdout or one fold, without a slide map" in said and "Use --method mean" in said
    assert call(*where, "--common-ids", "--method", "auto")[0] == 0
    data.slides.write_text(table("id,wsi", list(zip(IDS, SLIDES, strict=True))))
    code, shown, said = call(*where, "--common-ids", "--method", "stack", "--calibrate")
    assert code == 0 and "stack   nested AUC" in shown
    runs = [replace(make_run("x", 3), slides=SLIDES)]
    groups = _scoring_groups(replace(runs[0], oof=replace(runs[0].oof, fold=np.zeros(TOTAL, np.int64))))
    assert len(set(groups)) == 5 and len(set(zip(SLIDES, groups, strict=True))) == 20


def test_nothing_is_known_of_the_split_of_a_holdout_without_slides(call: Call, data: DataDir, tmp_path: Path) -> None:
    held = put_foreign(tmp_path, "held", "id,label,pred", HELD)
    code, _, said = call("ensemble", held.root, "--data", data.root, "--out", tmp_path / "s.csv")
    assert code == 0 and "unknown whether the holdout shares slides with the training patches" in said
    assert "folds by patch" not in said
    assert call("report", held.root, "--out", tmp_path / "r.html")[0] == 0
    page = (tmp_path / "r.html").read_text()
    assert "Caution: it is unknown whether the holdout shares slides" in page and "folds by patch" not in page


def test_folds_are_called_folds_by_patch_only_if_a_file_shows_it(call: Call, data: DataDir, tmp_path: Path) -> None:
    full, words = put(tmp_path, make_run("full", 3)), "it is unknown whether the folds are by slide; if a slide is in"

    def cautions() -> tuple[bool, bool]:
        code, _, said = call("ensemble", full.root, "--data", data.root, "--out", tmp_path / "s.csv")
        assert code == 0 and "holdout" not in said
        return words in said, "folds by patch" in said

    assert cautions() == (True, False)
    full.folds.write_text(table("id,label,group,fold", [(i, y, i, f) for i, y, f in ROWS]))
    assert cautions() == (False, True)
    full.folds.unlink()
    data.slides.write_text(table("id,wsi", [(i, f"s{n % 7}") for n, i in enumerate(IDS)]))
    assert cautions() == (False, True)


def test_a_run_with_folds_is_not_called_a_holdout_beside_one(call: Call, data: DataDir, tmp_path: Path) -> None:
    fold = [(i, y, p) for i, y, f, p in OOF_ROWS if f == 3]
    held, full = put_foreign(tmp_path, "held", "id,label,pred", fold), put(tmp_path, make_run("full", 3))
    where = ["--data", data.root, "--out", tmp_path / "s.csv", "--common-ids"]
    code, shown, said = call("ensemble", held.root, full.root, *where)
    assert code == 0 and "held: a holdout of 120 patches, without folds" in said
    assert "full: the 120 patches that it shares with the holdout held; the score is for those only" in said
    assert shown.startswith("held: holdout AUC") and "\nfull: OOF AUC" in shown and "\nensemble: AUC" in shown


def test_holdouts_have_no_oof_auc_on_the_command_line_and_in_the_report(
    call: Call, data: DataDir, tmp_path: Path
) -> None:
    inverted = [(i, y, round(1 - p, 5)) for i, y, p in HELD]
    places = [
        put_foreign(tmp_path, "h1", "id,label,pred", HELD),
        put_foreign(tmp_path, "h2", "id,label,pred", inverted),
    ]
    runs = [place.root for place in places]
    code, shown, said = call("ensemble", *runs, "--data", data.root, "--out", tmp_path / "s.csv")
    assert code == 0 and "OOF" not in shown + said and "h2: holdout AUC 0." in said
    assert "mean    nested holdout AUC" in shown and "\nensemble: holdout AUC" in shown
    assert call("report", *runs, "--out", tmp_path / "r.html")[0] == 0
    page = (tmp_path / "r.html").read_text().split('id="words"')[0]
    assert "OOF" not in page and "out-of-fold AUC" not in page and "All folds" not in page
    assert "has a holdout AUC of" in page and "holdout AUC with intervals of 95 %" in page
    assert "The holdout AUC of the plain mean of all runs is" in page and "AUC of all patches of the holdout." in page


def test_a_temperature_is_not_applied_where_it_cannot_be_checked(call: Call, data: DataDir, tmp_path: Path) -> None:
    held = put_foreign(tmp_path, "held", "id,label,pred", HELD)
    where = ["ensemble", held.root, "--data", data.root, "--out", tmp_path / "s.csv", "--calibrate"]
    code, shown, _ = call(*where)
    assert code == 0 and "not applied, because it cannot be checked on held-out patches without several folds" in shown
    assert "log loss" not in shown
    found = json.loads(call(*where, "--json")[1])["ensemble"]["calibration"]
    assert found["after"] is None and not found["applied"] and found["before"]["log_loss"] > 0
    data.slides.write_text(table("id,wsi", list(zip(IDS, SLIDES, strict=True))))
    code, shown, _ = call(*where)
    assert code == 0 and "on held-out folds" in shown


@pytest.mark.parametrize(
    ("malignant", "words"),
    [(1, "malignant patches outside one group of slides"), (0, "one holdout or one fold, with too few slides")],
)
def test_a_holdout_of_few_slides_has_groups_of_slides_in_place_of_folds(
    malignant: int, words: str, call: Call, data: DataDir, tmp_path: Path
) -> None:
    slides = dict(zip(IDS, SLIDES, strict=True))
    first = [row for row in HELD if slides[row[0]] == "s0"]
    second = [row for row in HELD if slides[row[0]] == "s1"]
    rows = [*first, *[row for row in second if row[1]][:malignant], *[row for row in second if not row[1]]]
    data.slides.write_text(table("id,wsi", list(slides.items())))
    runs = [
        put_foreign(tmp_path, name, "id,label,pred", [(i, y, round(p**power, 5)) for i, y, p in rows]).root
        for name, power in (("h1", 1), ("h2", 2))
    ]
    code, _, said = call("ensemble", *runs, "--data", data.root, "--out", tmp_path / "s.csv", "--method", "logloss")
    assert code == 1 and words in said and "outside fold" not in said and "runs with more slides" in said


@pytest.mark.parametrize("text", ["-1", ""])
def test_patches_without_a_fold_are_answered_with_what_a_holdout_needs(
    text: str, call: Call, data: DataDir, tmp_path: Path
) -> None:
    rows = [(i, y, 0 if f == 3 else text, p) for i, y, f, p in OOF_ROWS]
    place = put_foreign(tmp_path / "runs", "part", "id,label,fold,pred", rows)
    hint = "Keep only the rows of validation patches. For a holdout, also remove the fold column"
    code, _, said = call("ensemble", place.root, "--data", data.root, "--out", tmp_path / "s.csv")
    assert code == 1 and "480 invalid fold numbers" in said and hint in said
    code, shown, said = call("runs", tmp_path / "runs")
    assert code == 0 and "unreadable predictions" in shown and hint in said
    place.oof.write_text(table("id,label,pred", [(i, y, p) for i, y, f, p in rows if f != text]))
    assert call("ensemble", place.root, "--data", data.root, "--out", tmp_path / "s.csv")[0] == 0


SPREAD = 1 / (1 + np.exp(-np.random.default_rng(3).normal(0, 6, TESTS)))  # as sure as a trained network
TIES = {
    "half precision": (SPREAD.astype(np.float16).astype(np.float64), r"half precision \(fp16\)"),
    "half precision, as NumPy prints it": (SPREAD.astype(np.float16).astype(str).astype(float), r"\(fp16\)"),
    "bfloat16": (
        (SPREAD.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32).astype(float),
        r"half precision \(bf16\)",
    ),
    "a mean of saturated folds": (np.where(SPREAD < 0.3, 0.0, SPREAD), r"are exactly 0 and 0 exactly 1"),
    "two decimals": (SPREAD.round(2), "rounded to 2 decimals"),
    "classes": ((SPREAD > 0.5).astype(float), "only two distinct values; submit probabilities"),
    "clipped": (np.clip(SPREAD, 0.0123, 0.98), r"are 0.0123 and .* are 0.98, .*may be clipped"),
    "levels": ((np.floor(SPREAD * 7) + 1) / 7.3, "only 7 distinct values"),
}


@pytest.mark.parametrize("name", TIES)
def test_rows_that_cannot_be_ranked_are_counted_with_their_cause(
    name: str, call: Call, data: DataDir, tmp_path: Path
) -> None:
    values, words = TIES[name]
    rows = "".join(f"{one},{value!r}\n" for one, value in zip(TEST_IDS, values.tolist(), strict=True))
    (tmp_path / "s.csv").write_text("id,label\n" + rows)
    facts = check_submission(tmp_path / "s.csv", TEST_IDS)
    assert facts.tied == sum(values.tolist().count(value) > 1 for value in values.tolist())
    code, shown, said = call("submission", "check", tmp_path / "s.csv", "--data", data.root)
    assert code == 0 and shown.rstrip().endswith(f"valid, but {facts.tied:,} rows are tied")
    assert re.search(words, said), said
    assert f"{facts.tied:,} of {TESTS:,} rows" in said and said.count("\n") == 1


SUBMISSION = [(name, value) for name, value in zip(TEST_IDS, SPREAD.tolist(), strict=True)]
BAD_SUBMISSIONS = {
    "percentages": (table("id,label", [(i, 100 * p) for i, p in SUBMISSION]), "Divide percentages by 100"),
    "percent signs": (table("id,label", [(i, f"{p:.2%}") for i, p in SUBMISSION]), "without % and divided by 100"),
    "logarithms": (table("id,label", [(i, np.log(p)) for i, p in SUBMISSION]), "exp(value)"),
    "lists": (table("id,label", [(i, f"[{p}]") for i, p in SUBMISSION]), "Write only the numbers"),
    "no header": (table("id,label", SUBMISSION[1:]).split("\n", 1)[1], "no header: the first line is"),
    "another header": (table("Id,Label", SUBMISSION), "Write id,label as the first line, if these are the columns"),
    "capitals": (table("id,label", [(i.upper(), p) for i, p in SUBMISSION]), "differ only in capital letters"),
    "line ends of an old Macintosh": (table("id,label", SUBMISSION).replace("\n", "\r"), "lines end in CR alone"),
    "a web page": ("<!doctype html><html></html>", "a web page"),
    "JSON": ('[{"id": "a"}]', "JSON; expected a CSV file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_SUBMISSIONS)
def test_a_submission_of_another_form_is_refused_with_what_to_change(name: str, tmp_path: Path) -> None:
    text, words = BAD_SUBMISSIONS[name]
    (tmp_path / "s.csv").write_text(text, newline="")
    with pytest.raises(TableError) as caught:
        check_submission(tmp_path / "s.csv", TEST_IDS)
    assert words in str(caught.value)


def test_a_few_ties_are_no_matter(call: Call, data: DataDir, tmp_path: Path) -> None:
    values = SPREAD.copy()
    values[:9] = values[0]
    write_submission(tmp_path / "s.csv", TestPredictions(TEST_IDS, values), TEST_IDS, {})
    code, shown, said = call("submission", "check", tmp_path / "s.csv", "--data", data.root)
    assert code == 0 and shown.rstrip().endswith(": valid") and said == ""


def test_a_submission_check_needs_the_sample_submission_alone(call: Call, data: DataDir, tmp_path: Path) -> None:
    write_submission(tmp_path / "s.csv", TestPredictions(TEST_IDS, SPREAD), TEST_IDS, {})
    (tmp_path / "alone").mkdir()
    code, _, said = call("submission", "check", tmp_path / "s.csv", "--data", tmp_path / "alone")
    assert code == 2 and "alone: no sample_submission.csv there" in said
    data.sample.rename(tmp_path / "alone" / data.sample.name)
    assert call("submission", "check", tmp_path / "s.csv", "--data", tmp_path / "alone")[0] == 0


def test_an_ensemble_says_that_its_rows_are_tied(call: Call, data: DataDir, tmp_path: Path) -> None:
    run = make_run("rounded", 3)
    place = put(tmp_path, replace(run, test=replace(run.test, probabilities=run.test.probabilities.round(2))))
    code, _, said = call("ensemble", place.root, "--data", data.root, "--out", tmp_path / "s.csv")
    assert code == 0 and "s.csv: " in said and "rounded to 2 decimals" in said
    assert json.loads((tmp_path / "s.json").read_text())["tied"] > 0.9 * TOTAL

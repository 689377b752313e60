"""Test CSV files: every fault is named in one line, and no result depends on the order of rows."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from claris_kaggle.core.errors import ClarisError, DiskError, TableError
from claris_kaggle.data import foreign_tables, tables

A, B, C = "a" * 40, "b" * 40, "c" * 40

BAD_LABELS = {
    "empty": (b"", "empty"),
    "header only": (b"id,label\n", "no rows"),
    "other header": (b"name,class\na,1\n", "header is 'name,class'"),
    "no header": (f"{A},1\n{B},0\n".encode(), "no header: the first line is"),
    "extra column": (b"id,label,note\na,1,x\n", "extra columns: note"),
    "index column": (b",id,label\n0,a,1\n", "index column"),
    "comma at the end": (b"id,label,\na,1,\n", "an empty column at the end; expected id,label. Remove the comma"),
    "short row": (b"id,label\na,1\nb\n", "line 3 has too few values"),
    "long row": (b"id,label\na,1,2\n", "line 2 has too many values"),
    "label 2": (b"id,label\na,1\nb,2\n", "1 label other than 0 and 1 ('2' in line 3)"),
    "label empty": (b"id,label\na,\n", "1 label other than 0 and 1"),
    "label nan": (b"id,label\na,nan\n", "1 label other than 0 and 1"),
    "labels True and False": (b"id,label\na,True\nb,False\n", "Write True as 1 and False as 0"),
    "same id same label": (b"id,label\na,1\na,1\n", "1 repeated id (a)"),
    "same id other label": (b"id,label\na,1\na,0\n", "1 of them with different values"),
    "id with .tif": (b"id,label\na.tif,1\n", "1 id that end in .tif (a.tif)"),
    "id with .TIF": (b"id,label\na.TIF,1\n", "1 id that end in .tif (a.TIF)"),
    "id out of the folder": (b"id,label\n../../evil,1\n", "1 invalid id"),
    "id empty": (b"id,label\n,1\n", "1 invalid id"),
    "zero bytes": (b"id,label\na,1\n\0\0\0\0", "zero bytes"),
    "gzip": (gzip.compress(b"id,label\na,1\n"), "gzip-compressed"),
    "UTF-16": ("id,label\na,1\n".encode("utf-16"), "text in UTF-16; expected text in UTF-8. Save it again as CSV in"),
    "big-endian UTF-16": (b"\xfe\xff" + "id,label\na,1\n".encode("utf-16-be"), "text in UTF-16; expected text in"),
    "UTF-16 without a mark": ("id,label\na,1\n".encode("utf-16-le"), "text in UTF-16 without a byte-order mark"),
    "Latin-1": ("id,label\na,1\n\xe4,1\n".encode("latin-1"), "line 3 is not UTF-8 (?,1); expected text in UTF-8"),
    "not text": (b"id,label\n\xff\xfe\x03,1\n", "not a text file; expected a table"),
    "open quote": (b'id,label\n"a,1\n', "not a complete table"),
    "image": (b"II*\0\x08\0\0\0", "zero bytes"),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_a_faulty_label_file_is_named_with_its_fault(tmp_path: Path, name: str) -> None:
    content, words = BAD_LABELS[name]
    (tmp_path / "train_labels.csv").write_bytes(content)
    with pytest.raises(TableError) as caught:
        tables.read_labels(tmp_path / "train_labels.csv")
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/train_labels.csv: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"id,label\nb,0\na,1\n",
        b"\xef\xbb\xbfid,label\nb,0\na,1\n",
        b"id,label\r\nb,0\r\na,1\r\n",
        b'"id","label"\n"b","0"\n"a","1"\n',
        b"id,label\nb,0.0\na,1.0",
        b"id,label\n\nb,0\na,1\n\n",
        b"id,label\n \nb,0\na,1\n \n",
        b'"id","label"\n \n"b",0\n"a",1\n \n',
    ],
)
def test_every_usual_way_to_write_a_csv_is_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    ids, labels = tables.read_labels(tmp_path / "x.csv")
    assert (ids, labels.tolist()) == (["a", "b"], [1, 0])


def test_an_id_that_looks_like_a_number_stays_text(tmp_path: Path) -> None:
    ids = ["0" * 40, "12345678901234567890e10000000000000000000", "1e5", "007"]
    (tmp_path / "x.csv").write_text("id,label\n" + "".join(f"{name},0\n" for name in ids))
    assert tables.read_labels(tmp_path / "x.csv")[0] == sorted(ids)


def test_the_sample_keeps_its_order(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("id,label\nc,0\na,0\nb,0\n")
    assert tables.read_sample(tmp_path / "s.csv") == ["c", "a", "b"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="file not found"):
        tables.read_labels(tmp_path / "nothing.csv")


@pytest.mark.parametrize("column", foreign_tables._SLIDE_NAMES)
def test_slides_are_joined_by_id_whatever_their_order(tmp_path: Path, column: str) -> None:
    (tmp_path / "s.csv").write_text(f"number,id,{column}\n0,b,camelyon_2\n1,x,other\n2,a,camelyon_1\n")
    assert tables.read_slides(tmp_path / "s.csv", ["a", "b"]) == ["camelyon_1", "camelyon_2"]


@pytest.mark.parametrize(
    "header", ['"id","wsi"', "id, wsi", ' "id" , "wsi"', "\ufeffid,wsi", "id,wsi\r", '"id","wsi\n"']
)
def test_a_slide_maps_header_may_be_quoted_or_spaced(tmp_path: Path, header: str) -> None:
    (tmp_path / "s.csv").write_text(f"{header}\na,s1\nb,s2\n", "utf-8")
    assert tables.read_slides(tmp_path / "s.csv", ["a", "b"]) == ["s1", "s2"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,wsi\nc,s1\nd,s1\n", "no training id with a slide (first row c,s1)"),
        ("id,wsi\na,\nb,unknown\n", "no training id with a slide"),
        ("id,wsi\na,s1", "cut off: the last line has no line break, and 1 id are missing"),
        ("id,wsi\na,s1\nb,s1\na,s2\n", "1 repeated id (a), 1 of them with different values"),
        ("id,where\na,s1\n", "one of wsi, slide, slide_id, case, patient, group"),
        ("id,wsi\na,s1\nb\n", "line 3 has too few values"),
        ("<!DOCTYPE html>\n<html>\n", "a web page"),
        ('id,"the\nslide"\na,s1\n', "the columns are id,the slide"),
    ],
)
def test_a_faulty_slide_map_is_named_with_its_fault(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(TableError) as caught:
        tables.read_slides(tmp_path / "s.csv", ["a", "b"])
    assert words in str(caught.value)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(values=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=100))
def test_probabilities_come_back_as_the_same_float32(tmp_path: Path, values: list[float]) -> None:
    written = np.array(values, dtype=np.float32)
    tables.write_table(tmp_path / "p.csv", {"probability": written})
    texts = tables.read_table(tmp_path / "p.csv", ["probability"])["probability"].tolist()
    found = tables.parse_probabilities(texts, tmp_path / "p.csv").astype(np.float32)
    assert found.tobytes() == np.abs(written).tobytes()


@settings(max_examples=50)
@given(st.permutations(list(zip([A, B, C], [0, 1, 1], strict=True))))
def test_a_digest_does_not_depend_on_the_order(rows: list[tuple[str, int]]) -> None:
    ids, labels = zip(*rows, strict=True)
    assert tables.digest_rows(ids, labels) == tables.digest_rows([A, B, C], [0, 1, 1])


def test_a_digest_depends_on_every_value() -> None:
    assert len({tables.digest_rows([A, B], labels) for labels in ([0, 0], [0, 1], [1, 0], [1, 1])}) == 4


FRAGMENTS = st.sampled_from([b"id", b"label", b",", b"\n", b"\r\n", b'"', b"0", b"1", b"a", b"\0", b"\xff", b" ", b"."])
FUZZ = st.one_of(st.binary(max_size=60), st.lists(FRAGMENTS, max_size=30).map(b"".join))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(head=st.sampled_from([b"", b"id,label\n", b"id,label\na,1\n"]), tail=FUZZ)
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path: Path, head: bytes, tail: bytes) -> None:
    (tmp_path / "x.csv").write_bytes(head + tail)
    for read in (tables.read_labels, tables.read_sample, lambda path: tables.read_slides(path, ["a"])):
        try:
            read(tmp_path / "x.csv")
        except ClarisError as error:
            assert str(error)


@settings(max_examples=300)
@given(st.text('ab1,;"\n\r\t \x1f', max_size=40), st.sampled_from(["id,wsi\n", "id;wsi\n", "id\n", "id,wsi,\n", ""]))
def test_the_fast_way_for_plain_tables_gives_what_the_csv_parser_gives(text: str, header: str) -> None:
    lines, separator = foreign_tables._choose_separator((header + text).replace("\r\n", "\n").replace("\r", "\n"))
    try:
        plain = foreign_tables._split_plain_table(lines, separator, Path("t"))
    except TableError as error:
        with pytest.raises(TableError, match=f"^{re.escape(str(error))}$"):
            foreign_tables._parse_table(lines, separator, Path("t"), "")
        return
    if plain is not None:
        names, columns = foreign_tables._parse_table(lines, separator, Path("t"), "")
        assert plain[0] == names
        assert [list(map(str.strip, one)) for one in plain[1]] == [list(map(str.strip, one)) for one in columns]

"""Test folds: each patch occurs once, folds are balanced, and no slide or duplicate is on both sides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claris_kaggle.core.errors import ClarisError, DataError, RunError, TableError, UsageError
from claris_kaggle.core.paths import DataDir
from claris_kaggle.data.fold_file import Folds, check_folds, count_folds, read_folds, write_folds
from claris_kaggle.data.fold_split import make_folds


def make_ids(total: int) -> list[str]:
    return [f"{number * 7919 % 100_003:040d}" for number in range(total)]


def make_labels(total: int, share: float = 0.4) -> np.ndarray:
    return (np.random.default_rng(1).random(total) < share).astype(np.int8)


@settings(max_examples=60, deadline=None)
@given(total=st.integers(40, 400), k=st.integers(2, 6), seed=st.integers(0, 5), share=st.floats(0.25, 0.75))
def test_without_groups_folds_differ_by_one_patch_a_class(total: int, k: int, seed: int, share: float) -> None:
    folds = make_folds(make_ids(total), make_labels(total, share), k=k, seed=seed)
    for noun in ("patches", "benign", "malignant"):
        sizes = [getattr(row, noun) for row in count_folds(folds)]
        assert max(sizes) - min(sizes) <= 1
    rows = np.concatenate([folds.valid_rows(fold) for fold in range(k)])
    assert sorted(rows.tolist()) == list(range(total))
    for fold in range(k):
        both = np.concatenate([folds.train_rows(fold), folds.valid_rows(fold)])
        assert sorted(both.tolist()) == list(range(total))


@settings(max_examples=40, deadline=None)
@given(order=st.randoms(use_true_random=False), grouped=st.booleans(), doubled=st.booleans())
def test_any_order_of_rows_gives_the_same_folds(order: object, grouped: bool, doubled: bool) -> None:
    ids, labels = make_ids(120), make_labels(120)
    slides = [f"s{number // 6}" for number in range(120)] if grouped else None
    contents = [str(number // 2) for number in range(120)] if doubled else None
    first = make_folds(ids, labels, k=4, slides=slides, contents=contents)
    places = list(range(120))
    order.shuffle(places)  # type: ignore[attr-defined]
    again = make_folds(
        [ids[place] for place in places],
        labels[places],
        k=4,
        slides=slides and [slides[place] for place in places],
        contents=contents and [contents[place] for place in places],
    )
    assert again.digest == first.digest and again.ids == first.ids


def test_another_seed_gives_another_split() -> None:
    ids, labels = make_ids(200), make_labels(200)
    assert make_folds(ids, labels, seed=0).digest != make_folds(ids, labels, seed=1).digest
    assert make_folds(ids, labels, seed=0).digest == make_folds(ids, labels, seed=0).digest


def test_no_slide_stands_in_two_folds_and_classes_stay_balanced() -> None:
    total = 6000
    generator = np.random.default_rng(0)
    numbers = generator.integers(0, 120, total)
    labels = (generator.random(total) < np.linspace(0.05, 0.9, 120)[numbers]).astype(np.int8)
    folds = make_folds(make_ids(total), labels, slides=[f"s{number}" for number in numbers])
    where: dict[str, set[int]] = {}
    for group, fold in zip(folds.groups, folds.fold.tolist(), strict=True):
        where.setdefault(group, set()).add(fold)
    assert all(len(one) == 1 for one in where.values())
    shares = [row.share for row in count_folds(folds)]
    assert max(shares) - min(shares) < 0.05
    sizes = [row.patches for row in count_folds(folds)]
    assert max(sizes) - min(sizes) < 0.1 * np.mean(sizes)


def test_duplicates_stay_together_with_and_without_slides() -> None:
    ids, labels = make_ids(96), np.tile(np.array([0, 0, 1, 1], dtype=np.int8), 24)
    contents = [str(number // 2) for number in range(96)]
    for slides in (None, [f"s{number // 5}" for number in range(96)]):
        folds = make_folds(ids, labels, k=2, slides=slides, contents=contents)
        fold_of = dict(zip(folds.ids, folds.fold.tolist(), strict=True))
        assert all(fold_of[ids[row]] == fold_of[ids[row + 1]] for row in range(0, 96, 2))


def test_slides_that_share_a_duplicate_become_one_group() -> None:
    ids, labels = make_ids(40), np.tile(np.array([0, 1], dtype=np.int8), 20)
    slides = [f"s{number // 4}" for number in range(40)]
    contents = [str(number) for number in range(40)]
    contents[0] = contents[39] = "same"
    folds = make_folds(ids, labels, k=2, slides=slides, contents=contents)
    group_of = dict(zip(folds.ids, folds.groups, strict=True))
    assert group_of[ids[0]] == group_of[ids[39]] == "s0"
    assert len(set(folds.groups)) == 9


@pytest.mark.parametrize(
    ("k", "total", "words"),
    [(1, 20, "--k is 1"), (0, 20, "--k is 0"), (5, 8, "malignant patches"), (30, 20, "3 malignant patches")],
)
def test_an_impossible_number_of_folds_is_refused(k: int, total: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make_folds(make_ids(total), (np.arange(total) < 3).astype(np.int8), k=k)


@pytest.mark.parametrize(
    ("ids", "labels", "words"),
    [
        (make_ids(8), np.arange(9) % 2, "8 ids and 9 labels"),
        (["a"] * 8, np.arange(8) % 2, r"1 repeated id \(a\)"),
        (make_ids(8), np.arange(8) % 3, "labels 2; a label is 0"),
        (make_ids(8), np.array([0, 1] * 3 + [0, np.nan]), "labels nan; a label is 0"),
        (make_ids(8), ["0", "1"] * 4, "labels 0, 1; a label is 0"),
    ],
)
def test_what_is_no_table_of_patches_is_refused(ids: list[str], labels: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        make_folds(ids, labels, k=2)


@pytest.mark.parametrize("name", ["slides", "contents"])
def test_a_slide_or_content_for_each_patch_is_needed(name: str) -> None:
    with pytest.raises(DataError, match=f"40 ids and 3 {name}"):
        make_folds(make_ids(40), make_labels(40), k=2, **{name: ["s"] * 3})


@pytest.mark.parametrize("gap", [None, np.nan])
def test_a_missing_slide_is_refused(gap: object) -> None:
    with pytest.raises(DataError) as caught:
        make_folds(make_ids(40), make_labels(40), k=2, slides=[gap] * 3 + [1.0, 2.0, 3.0, 4.0] * 9 + [5.0])  # type: ignore[list-item]
    hint = "For a patch without one, give its own id"
    assert str(caught.value) == f"3 of 40 slides are missing; expected one for each id. {hint}"


def test_a_table_of_pandas_in_any_order_gives_the_folds_of_its_lists() -> None:
    table = pd.DataFrame({"id": make_ids(60), "label": make_labels(60), "slide": [f"s{n // 4}" for n in range(60)]})
    folds = make_folds(table["id"].tolist(), table["label"].to_numpy(), k=3, slides=table["slide"].tolist())
    for shuffled in (table.sample(frac=1, random_state=1), table[::-1].set_index("slide", drop=False)):
        found = make_folds(shuffled["id"], shuffled["label"], k=3, slides=shuffled["slide"], contents=shuffled["id"])
        assert found.digest == folds.digest


def test_no_part_of_an_impossible_split_is_left_unsaid() -> None:
    """The message says what was found, what was expected and what to do."""
    few = (np.arange(20) < 3).astype(np.int8)
    slides = [f"s{number // 5}" for number in range(20)]
    cases = [
        ({"k": 1}, "--k is 1; expected at least 2 folds"),
        ({"k": 4}, "--k is 4, with 3 malignant patches; each fold needs one. Use --k 3 or less"),
        ({"k": 2, "slides": slides},
         "--k is 2, with 1 slide with malignant patches; each fold needs one. Use data with at least two of them"),
        ({"k": 4, "slides": [f"s{number % 3}" for number in range(20)]},
         "--k is 4, with 3 slides with benign patches; each fold needs one. Use --k 3 or less"),
    ]  # fmt: skip
    for arguments, message in cases:
        with pytest.raises(UsageError) as caught:
            make_folds(make_ids(20), few, **arguments)  # type: ignore[arg-type]
        assert str(caught.value) == message
    with pytest.raises(
        UsageError, match=r"--k is 3, with 2 malignant patches; each fold needs one\. Use --k 2 or less"
    ):
        make_folds(make_ids(20), (np.arange(20) < 2).astype(np.int8), k=3)
    with pytest.raises(UsageError, match="--k is 2, with 1 malignant patch; each fold needs one"):
        make_folds(make_ids(20), (np.arange(20) < 1).astype(np.int8), k=2)
    with pytest.raises(DataError, match=r"^the ids: 1 repeated id"):
        make_folds(["a"] * 20, few)
    with pytest.raises(DataError, match=r"^20 ids and 19 labels; expected the same number of both$"):
        make_folds(make_ids(20), few[1:])
    with pytest.raises(DataError, match=r"^labels 2, 3; a label is 0 \(benign\) or 1 \(malignant\)$"):
        make_folds(make_ids(20), np.arange(20) % 4)


def test_as_many_folds_as_patches_of_a_class_or_slides_are_possible() -> None:
    labels = (np.arange(20) < 3).astype(np.int8)
    assert make_folds(make_ids(20), labels, k=3).k == 3
    slides = [f"s{number % 3}" for number in range(20)]
    assert make_folds(make_ids(20), labels, k=3, slides=slides).k == 3


def test_a_split_that_leaves_a_fold_without_a_class_says_what_to_change() -> None:
    """Only two slides have benign patches, and scikit-learn puts both in one fold."""
    labels, slides = np.array([0, 0, 0, 1, 1, 1, 0, 1, 1, 1], np.int8), [*"aaabbbbccc"]
    words = r"^the split: fold \d has no benign patch; each fold needs both classes\. Use fewer folds with --k, or"
    with pytest.raises(DataError, match=words):
        make_folds([f"{number:02d}" for number in range(10)], labels, k=2, slides=slides)


def test_five_folds_of_seed_0_are_the_default_and_remember_what_they_are_made_of() -> None:
    ids, labels = make_ids(60), make_labels(60)
    slides = [f"s{number % 12}" for number in range(60)]
    assert make_folds(ids, labels).digest == make_folds(ids, labels.astype(float), k=5, seed=0).digest
    assert make_folds(ids, labels).groups == sorted(ids) and make_folds(ids, labels).by_slide is False
    folds = make_folds(ids, labels, slides=slides)
    assert folds.by_slide is True and make_folds(ids, labels.astype(float)).labels.dtype == np.int8
    label_of, slide_of = dict(zip(ids, labels, strict=True)), dict(zip(ids, slides, strict=True))
    assert folds.labels.tolist() == [label_of[name] for name in sorted(ids)]
    assert folds.groups == [slide_of[name] for name in sorted(ids)]


def test_a_chain_of_slides_and_duplicates_is_one_group_under_its_smallest_name() -> None:
    """d and c have the same content, c and b are linked by it through a slide, b and a by other content; e is alone."""
    slides = ["d", "d", "c", "c", "b", "b", "a", "a", "e", "e", "f", "f"]
    contents = ["0", "x", "x", "y", "y", "z", "z", "1", "2", "3", "4", "5"]
    ids = [f"{number:02d}" for number in range(12)]
    folds = make_folds(ids, np.arange(12) % 2, k=2, slides=slides, contents=contents)
    assert folds.groups == ["a"] * 8 + ["e"] * 2 + ["f"] * 2
    alone = make_folds(ids, np.arange(12) % 2, k=2, contents=contents)
    assert alone.groups == ["00", "01", "01", "03", "03", "05", "05", "07", "08", "09", "10", "11"]


def test_flags_of_making_do_not_go_with_checking(
    call: Callable[..., tuple[int, str, str]], generated: DataDir, fold_file: Path
) -> None:
    check = ["folds", "--data", generated.root, "--check", fold_file]
    code, shown, said = call(*check, "--k", 10, "--seed", 0, "--force")
    assert (code, shown) == (2, "") and "--k and --seed and --force with --check" in said


def test_a_fold_without_a_class_is_refused(tmp_path: Path) -> None:
    ids = make_ids(8)
    folds = Folds(sorted(ids), np.array([0, 1, 0, 1, 0, 0, 0, 0], np.int8), sorted(ids), np.array([0] * 4 + [1] * 4))
    write_folds(tmp_path / "f.csv", folds, {}, overwrite=True)
    with pytest.raises(DataError, match="fold 1 has no malignant patch"):
        read_folds(tmp_path / "f.csv")


def test_too_few_slides_of_a_class_are_refused() -> None:
    labels = (np.arange(40) < 20).astype(np.int8)
    with pytest.raises(UsageError, match="1 slide with benign patches"):
        make_folds(make_ids(40), labels, k=2, slides=[f"s{number // 20}" for number in range(40)])


@pytest.fixture
def folds() -> Folds:
    return make_folds(make_ids(60), make_labels(60), k=3)


def test_a_fold_file_comes_back_the_same_and_is_not_written_twice(tmp_path: Path, folds: Folds) -> None:
    path = tmp_path / "f.csv"
    assert write_folds(path, folds, {"seed": 0})
    stamp = path.stat().st_mtime_ns
    assert read_folds(path).digest == folds.digest
    assert not write_folds(path, folds, {"seed": 0})
    assert path.stat().st_mtime_ns == stamp


def test_folds_know_whether_they_are_of_slides_by_their_json_whatever_the_size_of_these(tmp_path: Path) -> None:
    ids, labels = make_ids(60), make_labels(60)
    slides = [f"s{number // 2 if number < 20 else number}" for number in range(60)]
    by_slide = make_folds(ids, labels, k=3, slides=slides)
    by_patch = make_folds(ids, labels, k=3, contents=[str(number // 2) for number in range(60)])
    assert by_slide.slides == by_slide.groups and by_patch.slides is None
    for folds in (by_slide, by_patch):
        write_folds(tmp_path / "f.csv", folds, {}, overwrite=True)
        assert read_folds(tmp_path / "f.csv").slides == folds.slides
        write_folds(tmp_path / "copy.csv", read_folds(tmp_path / "f.csv"), {}, overwrite=True)
        assert read_folds(tmp_path / "copy.csv").slides == folds.slides
    (tmp_path / "f.json").write_text("cut")
    assert read_folds(tmp_path / "f.csv").digest == by_patch.digest


def test_other_folds_are_not_overwritten(tmp_path: Path, folds: Folds) -> None:
    path = tmp_path / "f.csv"
    write_folds(path, folds, {})
    before = path.read_bytes()
    other = make_folds(make_ids(60), make_labels(60), k=3, seed=9)
    with pytest.raises(RunError, match="already exists with different folds"):
        write_folds(path, other, {})
    assert path.read_bytes() == before
    assert write_folds(path, other, {}, overwrite=True)


def replace_once(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda text: text[:-3], "cut off"),
        (lambda text: text[: len(text) // 2], "cut off|too few"),
        (lambda text: replace_once(text, "id,label,group,fold", "id,label,fold"), "line 2 has too many values"),
        (lambda text: text.replace(",2\n", ",7\n"), "folds 0, 1, 7: fold 2, 3, 4 and 2 more has no patches"),
        (lambda text: text.replace(",2\n", ",x\n"), "invalid fold number"),
        (
            lambda text: text.replace(",2\n", ",1\n").replace(",1\n", ",0\n"),
            r"a single fold \(0\); expected at least two",
        ),
        (lambda text: text + text.splitlines()[1] + "\n", "repeated id"),
    ],
)
def test_a_faulty_fold_file_is_named_with_its_fault_and_mend(
    tmp_path: Path, folds: Folds, fault: object, words: str
) -> None:
    path = tmp_path / "f.csv"
    write_folds(path, folds, {})
    path.write_text(fault(path.read_text()))  # type: ignore[operator]
    with pytest.raises(ClarisError, match=words) as caught:
        read_folds(path)
    assert "claris folds" in str(caught.value)


def test_a_group_in_two_folds_is_refused(tmp_path: Path, folds: Folds) -> None:
    leaking = Folds(folds.ids, folds.labels, ["one"] * 60, folds.fold)
    write_folds(tmp_path / "f.csv", leaking, {}, overwrite=True)
    with pytest.raises(TableError, match=r"1 group in more than one fold \(one\)"):
        read_folds(tmp_path / "f.csv")


def test_folds_of_other_data_are_refused(folds: Folds) -> None:
    path = Path("f.csv")
    check_folds(folds, folds.ids, folds.labels, path)
    with pytest.raises(TableError, match="1 id of train_labels.csv missing"):
        check_folds(folds, [*folds.ids, "zz"], np.append(folds.labels, 0), path)
    with pytest.raises(TableError, match=r"1 id not in train_labels.csv"):
        check_folds(folds, folds.ids[1:], folds.labels[1:], path)
    with pytest.raises(TableError, match="60 labels different from"):
        check_folds(folds, folds.ids, 1 - folds.labels, path)


def test_a_slide_or_a_duplicate_on_both_sides_is_refused(folds: Folds) -> None:
    with pytest.raises(TableError, match="1 slide in more than one fold"):
        check_folds(folds, folds.ids, folds.labels, Path("f.csv"), slides=["s"] * 60)
    with pytest.raises(TableError, match="1 exact duplicate in more than one fold"):
        check_folds(folds, folds.ids, folds.labels, Path("f.csv"), contents=["same"] * 60)


def test_every_version_of_the_libraries_gives_these_very_folds() -> None:
    """Computed with scikit-learn 1.6.1 and 1.9.1, pandas 2.2.3 and 3.1.1, NumPy 2.0.2 and 2.4.6."""
    ids, labels = make_ids(300), (np.arange(300) * 7 % 5 < 2).astype(np.int8)
    assert make_folds(ids, labels).digest == "e66cb7b6e7b1c7bb3f8520b3586ecbdf88a9590cb74a4cd3c2eb82804533c140"
    slides = [f"s{number * number % 37}" for number in range(300)]
    digest = make_folds(ids, labels, slides=slides).digest
    assert digest == "fbde22382e93182da09bcedfe866c11ff4e9fefc8034dbb47968fcaea85ac146"


def test_the_labels_are_not_replaced_by_folds_even_when_forced(tmp_path: Path, folds: Folds) -> None:
    labels = tmp_path / "train_labels.csv"
    labels.write_text("id,label\na,0\n")
    with pytest.raises(UsageError, match="competition's own file"):
        write_folds(labels, folds, {}, overwrite=True)
    assert labels.read_text() == "id,label\na,0\n"
